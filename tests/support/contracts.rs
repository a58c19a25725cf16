//! Contracts small enough to be written by hand, as runtime code for `set_code`.
//!
//! They use only instructions that every hard fork since Constantinople knows (no PUSH0).

/// Reverts with `Error("not today")`.
pub const ALWAYS_REVERTS: &str = concat!(
    "0x",
    "6308c379a060e01b600052", // memory[0x00] = selector of Error(string), in the upper four bytes
    "6020600452",             // memory[0x04] = where the string starts
    "6009602452",             // memory[0x24] = its length
    "686e6f7420746f64617960b81b604452", // memory[0x44] = "not today", moved to the left
    "60646000fd",             // revert with the first 100 bytes
);

/// Reverts with `Panic(0x11)`, an arithmetic overflow.
pub const PANICS: &str = concat!(
    "0x",
    "634e487b7160e01b600052", // memory[0x00] = selector of Panic(uint256)
    "6011600452",             // memory[0x04] = 0x11
    "60246000fd",             // revert with the first 36 bytes
);

/// Reverts with the custom error `NotAllowed(uint256)`, its value 42.
pub const REVERTS_CUSTOM: &str = concat!(
    "0x",
    "6311fbe71260e01b600052", // memory[0x00] = selector of NotAllowed(uint256)
    "602a600452",             // memory[0x04] = 42
    "60246000fd",             // revert with the first 36 bytes
);

/// Selector of `NotAllowed(uint256)`, which [`REVERTS_CUSTOM`] answers with.
pub const NOT_ALLOWED_SELECTOR: &str = "0x11fbe712";

/// Accepts every call and every value, and does nothing.
pub const SINK: &str = "0x00"; // STOP

/// Reverts with `Error("closed")` while storage slot 0 is zero, accepts everything after; `RpcClient::set_storage`
/// opens and closes it.
pub const REVERTS_UNLESS_FLAG: &str = concat!(
    "0x",
    "600054602d57",               // if storage[0] != 0 jump to 0x2d
    "6308c379a060e01b600052",     // memory[0x00] = selector of Error(string)
    "6020600452",                 // memory[0x04] = where the string starts
    "6006602452",                 // memory[0x24] = its length
    "65636c6f73656460d01b604452", // memory[0x44] = "closed", moved to the left
    "60646000fd",                 // revert with the first 100 bytes
    "5b00",                       // 0x2d: STOP
);

/// Reverts with `Error("not today")` when the first byte of the calldata is 0xff, accepts everything else.
pub const REVERTS_ON_FF: &str = concat!(
    "0x",
    "60003560f81c",           // first byte of the calldata
    "60ff14600d57",           // if it is 0xff jump to 0x0d
    "005b",                   // STOP; 0x0d:
    "6308c379a060e01b600052", // as ALWAYS_REVERTS
    "6020600452",
    "6009602452",
    "686e6f7420746f64617960b81b604452",
    "60646000fd",
);

/// Reverts with `Error(string)` where the string has half a million bytes, all zero.
pub const REVERTS_AT_LENGTH: &str = concat!(
    "0x",
    "6308c379a060e01b600052", // memory[0x00] = selector of Error(string)
    "6020600452",             // memory[0x04] = where the string starts
    "6207a120602452",         // memory[0x24] = its length, 500000
    "6207a1646000fd",         // revert with the first 500068 bytes
);

/// Adds one to the storage slot that the first argument names (any selector), so that a test can count how often a
/// write took effect: `RpcClient::storage`.
pub const COUNTS_EFFECTS: &str = concat!(
    "0x", "600435", // key = the word after the selector
    "8054",   // value = storage[key]
    "600101", // value + 1
    "905500", // storage[key] = value + 1; STOP
);

/// `transfer(address,uint256)` of a token that everybody may send: adds the amount to the storage slot that is the address,
/// and returns true. Every other call reverts.
pub const TOKEN: &str = concat!(
    "0x",
    "60003560e01c63a9059cbb146014", // jump to 0x14 if the selector is transfer's
    "5760006000fd",                 // else revert with nothing
    "5b",                           // 0x14
    "6004358054",                   // key = to; value = storage[key]
    "60243501",                     // value + amount
    "9055",                         // storage[key] = value + amount
    "600160005260206000f3",         // return 1
);

/// Reads byte 7 of the calldata, which in `{"do":"write",…}` is the first letter of the word: `n` ("never") reverts
/// with `Error("not today")`, `l` ("later") with `Error("closed")` while storage slot 0 is zero, and everything else is
/// accepted. `RpcClient::set_storage` opens the slot.
pub const BY_WORD: &str = concat!(
    "0x",
    "60073560f81c",                     // letter = calldata[7]
    "80606e14604157",                   // if letter == 'n' jump to 0x41
    "606c1415606c57",                   // if letter != 'l' jump to 0x6c
    "600054606c57",                     // if storage[0] != 0 jump to 0x6c
    "6308c379a060e01b600052",           // memory[0x00] = selector of Error(string)
    "6020600452",                       // memory[0x04] = where the string starts
    "6006602452",                       // memory[0x24] = its length
    "65636c6f73656460d01b604452",       // memory[0x44] = "closed", moved to the left
    "60646000fd",                       // revert with the first 100 bytes
    "5b",                               // 0x41
    "6308c379a060e01b600052",           // memory[0x00] = selector of Error(string)
    "6020600452",                       // memory[0x04] = where the string starts
    "6009602452",                       // memory[0x24] = its length
    "686e6f7420746f64617960b81b604452", // memory[0x44] = "not today", moved to the left
    "60646000fd",                       // revert with the first 100 bytes
    "5b00",                             // 0x6c: STOP
);

/// As [`BY_WORD`], for calls of `keep(uint256 word, uint256 number)` and `keepMany(uint256[] words, uint256[] numbers)`: where
/// a word is 2 it reverts with `Error("not today")`, where one is 1 with `Error("closed")` while storage slot 0 is zero.
pub const BY_NUMBER: &str = concat!(
    "0x",
    "600435604014601057", // if calldata[4..36] == 0x40, which is where an array starts, jump to 0x10
    "60246004601c56",     // end = 0x24, place = 4, jump to 0x1c
    "5b60443560051b606401", // 0x10: end = 0x64 + 32 * length
    "6064",               // place = 0x64
    "5b81811015609357",   // 0x1c: if place is not below end jump to 0x93
    "8035",               // word = calldata[place..]
    "80600214606857",     // if word == 2 jump to 0x68
    "60011415606157",     // if word != 1 jump to 0x61
    "600054606157",       // if storage[0] != 0 jump to 0x61
    "6308c379a060e01b600052", // memory[0x00] = selector of Error(string)
    "6020600452",         // memory[0x04] = where the string starts
    "6006602452",         // memory[0x24] = its length
    "65636c6f73656460d01b604452", // memory[0x44] = "closed", moved to the left
    "60646000fd",         // revert with the first 100 bytes
    "5b602001601c56",     // 0x61: place += 32, jump to 0x1c
    "5b",                 // 0x68
    "6308c379a060e01b600052", // memory[0x00] = selector of Error(string)
    "6020600452",         // memory[0x04] = where the string starts
    "6009602452",         // memory[0x24] = its length
    "686e6f7420746f64617960b81b604452", // memory[0x44] = "not today", moved to the left
    "60646000fd",         // revert with the first 100 bytes
    "5b00",               // 0x93: STOP
);

/// Calldata that begins with the byte 1 opens it; everything else reverts without a reason until then, and is accepted after.
pub const OPENED_BY_ONE: &str = concat!(
    "0x",
    "60003560f81c", // first byte of the calldata
    "600114601757", // if it is 1 jump to 0x17
    "600054601e57", // if storage[0] != 0 jump to 0x1e
    "60006000fd",   // revert with nothing
    "5b6001600055", // 0x17: storage[0] = 1
    "00",           // STOP
    "5b00",         // 0x1e: STOP
);

/// Reverts with `Error(text)`.
pub fn reverts_with(text: &str) -> String {
    let word = |number: usize| format!("{number:064x}");
    let bytes: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut data = format!("08c379a0{}{}{bytes}", word(32), word(text.len()));
    let length = data.len() / 2;
    data.push_str(&"0".repeat((64 - data.len() % 64) % 64));
    let mut code = "0x".to_owned();
    for at in (0..data.len()).step_by(64) {
        // PUSH32 word, PUSH2 place, MSTORE
        code.push_str(&format!("7f{}61{:04x}52", &data[at..at + 64], at / 2));
    }
    // PUSH2 length, PUSH1 0, REVERT
    code.push_str(&format!("61{length:04x}6000fd"));
    code
}
