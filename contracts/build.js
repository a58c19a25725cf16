// Compiles Records.sol into Records.json (ABI, the bytecode that deploys it, and the code that stands in the chain then),
// the same bytes wherever it runs. scripts/build-contracts.sh calls it with the compiler that it brings.
const fs = require("fs");
const path = require("path");

const solc = require(process.argv[2]);
const source = "contracts/Records.sol";
const input = {
  language: "Solidity",
  sources: { [source]: { content: fs.readFileSync(path.join(__dirname, "Records.sol"), "utf8") } },
  settings: {
    // Runs on chains from before EIP-3855 (PUSH0) too.
    evmVersion: "paris",
    optimizer: { enabled: true, runs: 1000 },
    // No path, comment or compiler's whim changes the bytes.
    metadata: { bytecodeHash: "none", appendCBOR: false },
    outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] } },
  },
};
const output = JSON.parse(solc.compile(JSON.stringify(input)));
for (const error of output.errors ?? []) {
  console.error(error.formattedMessage);
}
if ((output.errors ?? []).length > 0) {
  process.exit(1);
}
const { abi, evm } = output.contracts[source].Records;
const [bytecode, runtime] = [evm.bytecode, evm.deployedBytecode].map(({ object }) => "0x" + object);
const artefact = { contract: "Records", compiler: solc.version(), abi, bytecode, runtime };
process.stdout.write(JSON.stringify(artefact, null, 1) + "\n");
