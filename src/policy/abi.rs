//! Calls of contracts: a function by its signature or from an ABI file, and its arguments from JSON, each checked against
//! its type. Encoding: Solidity, "Contract ABI Specification".

use std::fmt;

use alloy_dyn_abi::{DynSolType, DynSolValue, JsonAbiExt, Specifier};
pub use alloy_json_abi::Function;
use alloy_json_abi::{Param, StateMutability};
use alloy_primitives::{Address, B256, I256, U256};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use crate::model::cause::cut;

mod errors;
mod many;

use errors::{abi_of, decoded};

pub use errors::Errors;
pub use many::Many;

/// The longest part of a value that does not fit, in a message.
pub(super) const SHOWN_BYTES: usize = 80;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Hex,
    /// Base64 with padding (RFC 4648, section 4).
    Base64,
}

/// A place in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    place: String,
    encoding: Encoding,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    At(Pointer),
    Literal(Value),
}

/// A function with all that it is called with.
#[derive(Debug, Clone)]
pub struct Call {
    function: Function,
    arguments: Vec<Argument>,
}

#[derive(Debug, Clone)]
struct Argument {
    name: String,
    kind: DynSolType,
    components: Vec<Param>,
    from: Given,
}

#[derive(Debug, Clone)]
enum Given {
    Body(Pointer),
    Fixed(DynSolValue),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    what: String,
    place: String,
    expected: String,
    found: String,
}

impl Misfit {
    pub(super) fn new(what: &str, place: &str, expected: &str, found: String) -> Self {
        Self { what: what.to_owned(), place: place.to_owned(), expected: expected.to_owned(), found }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, place, expected, found } = self;
        let place = if place.is_empty() { "the start" } else { place };
        write!(f, "{what} at {place}: expected {expected}, found {found}")
    }
}

/// Returns the function with this signature, with or without names of arguments: `transfer(address to, uint256
/// amount)`.
pub fn function(signature: &str) -> Result<Function, String> {
    let function = Function::parse(signature).map_err(|error| format!("is no signature of a function: {error}"))?;
    let is_type = |param: &&Param| Specifier::<DynSolType>::resolve(*param).is_ok();
    match function.inputs.iter().find(|param| !is_type(param)) {
        Some(param) => Err(format!("has an argument of type {}, which Solidity does not have", param.ty)),
        None => Ok(function),
    }
}

/// Returns the function of this name, or with this signature where several have the name, from the text of an ABI file:
/// the list itself, or what a compiler writes, with the list under `abi`. Checked for what it may be sent.
///
/// # Errors
/// The text says what is wrong with the file, or which functions it has instead.
pub fn function_in(file: &str, wanted: &str, pays: bool) -> Result<Function, String> {
    let abi = abi_of(file)?;
    let signature = Function::parse(wanted).map(|function| function.signature()).ok();
    let is_meant = |function: &&Function| function.name == wanted || Some(function.signature()) == signature;
    let found: Vec<_> = abi.functions().filter(is_meant).collect();
    let listed = |functions: Vec<&Function>| {
        functions.into_iter().map(|function| function.signature()).collect::<Vec<_>>().join(", ")
    };
    let function = match found.as_slice() {
        [function] => (*function).clone(),
        [] => return Err(format!("has no function {wanted:?}; it has {}", listed(abi.functions().collect()))),
        several => return Err(format!("has several functions {wanted:?}; name one of {}", listed(several.to_vec()))),
    };
    match function.state_mutability {
        StateMutability::Pure | StateMutability::View => Err(format!("says that {wanted} writes nothing")),
        StateMutability::NonPayable if pays => Err(format!("says that {wanted} takes no value")),
        StateMutability::NonPayable | StateMutability::Payable => Ok(function),
    }
}

impl Pointer {
    /// Returns a JSON pointer (RFC 6901), and how bytes there are written.
    pub fn new(place: &str, encoding: Encoding) -> Self {
        Self { place: place.to_owned(), encoding }
    }

    /// Returns the wei that the body names there.
    ///
    /// # Errors
    /// Where that is no amount.
    pub fn amount(&self, body: &Value) -> Result<u128, Misfit> {
        let misfit = |found| Misfit::new("value", &self.place, AMOUNT, found);
        let value = body.pointer(&self.place).ok_or_else(|| misfit("nothing".to_owned()))?;
        amount(value).ok_or_else(|| misfit(shown(value)))
    }
}

impl Call {
    /// Returns the function, called with arguments from these places.
    ///
    /// # Errors
    /// Where they are too many or too few, or one that is given is not of its type.
    pub fn new(function: Function, sources: Vec<Source>) -> Result<Self, String> {
        let (wanted, given) = (function.inputs.len(), sources.len());
        if wanted != given {
            return Err(format!("has {given}, and {} takes {wanted}", function.signature()));
        }
        let arguments = function.inputs.iter().zip(sources).enumerate().map(|(index, (param, source))| {
            let number = index + 1;
            let name = match param.name.as_str() {
                "" => format!("argument {number}"),
                name => format!("argument {number} ({name})"),
            };
            let kind = Specifier::<DynSolType>::resolve(param).map_err(|error| format!("{name}: {error}"))?;
            let from = match source {
                Source::At(pointer) => Given::Body(pointer),
                Source::Literal(value) => {
                    let mut reader = Reader { what: &name, encoding: Encoding::Hex, place: String::new() };
                    Given::Fixed(
                        reader.read(&kind, &param.components, Some(&value)).map_err(|misfit| misfit.to_string())?,
                    )
                }
            };
            Ok::<_, String>(Argument { name, kind, components: param.components.clone(), from })
        });
        let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
        Ok(Self { function, arguments })
    }

    pub fn function(&self) -> &Function {
        &self.function
    }

    /// Returns its name and the types of its arguments.
    pub fn signature(&self) -> String {
        self.function.signature()
    }

    /// Returns the function with its named arguments, if these calldata are a call of it.
    pub fn decode(&self, calldata: &[u8]) -> Option<String> {
        let (selector, arguments) = calldata.split_first_chunk::<4>()?;
        if *selector != self.selector() {
            return None;
        }
        decoded(&self.function.name, &self.function.inputs, arguments)
    }

    /// Returns the first bytes of its calldata.
    pub fn selector(&self) -> [u8; 4] {
        self.function.selector().0
    }

    /// Returns calldata that take no more gas than those of any call of it.
    pub fn least_calldata(&self) -> Vec<u8> {
        let words = self.arguments.iter().map(|argument| vec![0; 32 * argument.kind.minimum_words().min(4096)]);
        self.selector().into_iter().chain(words.flatten()).collect()
    }

    /// Returns whether the arguments come from the body.
    pub fn is_of_body(&self) -> bool {
        self.arguments.iter().any(|argument| matches!(argument.from, Given::Body(_)))
    }

    /// Returns the calldata.
    ///
    /// # Errors
    /// The first argument that the body has not, or not of its type.
    pub fn encode(&self, body: &Value) -> Result<Vec<u8>, Misfit> {
        let value = |argument: &Argument| match &argument.from {
            Given::Fixed(value) => Ok(value.clone()),
            Given::Body(pointer) => {
                let place = pointer.place.clone();
                let mut reader = Reader { what: &argument.name, encoding: pointer.encoding, place };
                reader.read(&argument.kind, &argument.components, body.pointer(&pointer.place))
            }
        };
        let values = self.arguments.iter().map(value).collect::<Result<Vec<_>, _>>()?;
        let encoded = self.function.abi_encode_input(&values);
        encoded.map_err(|error| Misfit::new(&self.signature(), "", "arguments of its types", error.to_string()))
    }
}

struct Reader<'a> {
    what: &'a str,
    encoding: Encoding,
    /// Where it is now, as a JSON pointer.
    place: String,
}

impl Reader<'_> {
    fn read(&mut self, kind: &DynSolType, names: &[Param], value: Option<&Value>) -> Result<DynSolValue, Misfit> {
        let Some(value) = value else { return Err(self.misfit(kind.to_string(), "nothing".to_owned())) };
        let read = match kind {
            DynSolType::Bool => value.as_bool().map(DynSolValue::Bool),
            DynSolType::String => value.as_str().map(|text| DynSolValue::String(text.to_owned())),
            DynSolType::Uint(bits) => whole_number(value).and_then(|(is_negative, magnitude)| {
                let fits = magnitude.bit_len() <= *bits && !(is_negative && magnitude > U256::ZERO);
                fits.then_some(DynSolValue::Uint(magnitude, *bits))
            }),
            DynSolType::Int(bits) => whole_number(value).and_then(|(is_negative, magnitude)| {
                let limit = U256::from(1).checked_shl(bits.checked_sub(1)?)?;
                let fits = magnitude < limit || (is_negative && magnitude == limit);
                let raw = if is_negative { magnitude.wrapping_neg() } else { magnitude };
                fits.then_some(DynSolValue::Int(I256::from_raw(raw), *bits))
            }),
            DynSolType::Address => value.as_str().and_then(address).map(DynSolValue::Address),
            DynSolType::Bytes => self.bytes(value).map(DynSolValue::Bytes),
            DynSolType::FixedBytes(length) => self
                .bytes(value)
                .filter(|bytes| bytes.len() == *length && *length <= B256::len_bytes())
                .map(|bytes| DynSolValue::FixedBytes(B256::right_padding_from(&bytes), *length)),
            DynSolType::Function => {
                let bytes = self.bytes(value).and_then(|bytes| <[u8; 24]>::try_from(bytes).ok());
                bytes.map(|bytes| DynSolValue::Function(bytes.into()))
            }
            DynSolType::Array(inner) => match value.as_array() {
                Some(values) => return self.read_all(inner, names, values).map(DynSolValue::Array),
                None => None,
            },
            DynSolType::FixedArray(inner, length) => match value.as_array() {
                Some(values) if values.len() == *length => {
                    return self.read_all(inner, names, values).map(DynSolValue::FixedArray);
                }
                Some(values) => return Err(self.misfit(kind.to_string(), format!("{} values", values.len()))),
                None => None,
            },
            DynSolType::Tuple(kinds) => return self.read_tuple(kind, kinds, names, value),
        };
        read.ok_or_else(|| self.misfit(self.expected(kind), shown(value)))
    }

    fn read_all(&mut self, kind: &DynSolType, names: &[Param], values: &[Value]) -> Result<Vec<DynSolValue>, Misfit> {
        let each = values.iter().enumerate();
        each.map(|(index, value)| self.within(&index.to_string(), |here| here.read(kind, names, Some(value)))).collect()
    }

    /// Returns an array of its members, or, where they have names, an object.
    fn read_tuple(
        &mut self,
        kind: &DynSolType,
        kinds: &[DynSolType],
        names: &[Param],
        value: &Value,
    ) -> Result<DynSolValue, Misfit> {
        let misfit = |here: &Self, found| Err(here.misfit(format!("the tuple {kind}"), found));
        let members: Vec<_> = match value {
            Value::Array(values) if values.len() == kinds.len() => {
                values.iter().enumerate().map(|(index, value)| (index.to_string(), Some(value))).collect()
            }
            Value::Array(values) => return misfit(self, format!("{} values", values.len())),
            Value::Object(members)
                if names.len() == kinds.len() && names.iter().all(|param| !param.name.is_empty()) =>
            {
                if let Some(stray) = members.keys().find(|key| names.iter().all(|param| param.name != **key)) {
                    return misfit(self, format!("a member {:?}, which it has not", cut(stray.clone(), SHOWN_BYTES)));
                }
                names.iter().map(|param| (param.name.clone(), members.get(&param.name))).collect()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                return misfit(self, shown(value));
            }
        };
        let mut read = Vec::with_capacity(kinds.len());
        for (index, (kind, (key, value))) in kinds.iter().zip(members).enumerate() {
            let names = names.get(index).map_or(&[][..], |param| &param.components);
            read.push(self.within(&key, |here| here.read(kind, names, value))?);
        }
        Ok(DynSolValue::Tuple(read))
    }

    fn within<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.place.len();
        self.place.push('/');
        self.place.push_str(&key.replace('~', "~0").replace('/', "~1"));
        let read = read(self);
        self.place.truncate(length);
        read
    }

    fn bytes(&self, value: &Value) -> Option<Vec<u8>> {
        let text = value.as_str()?;
        match self.encoding {
            Encoding::Hex => hex::decode(text.strip_prefix("0x")?).ok(),
            Encoding::Base64 => BASE64_STANDARD.decode(text).ok(),
        }
    }

    fn expected(&self, kind: &DynSolType) -> String {
        let hint = match (kind, self.encoding) {
            (DynSolType::Uint(_) | DynSolType::Int(_), _) => " as a whole number or a text with one",
            (DynSolType::Bytes | DynSolType::FixedBytes(_) | DynSolType::Function, Encoding::Hex) => {
                " as 0x and hexadecimal digits"
            }
            (DynSolType::Bytes | DynSolType::FixedBytes(_) | DynSolType::Function, Encoding::Base64) => " in base64",
            (DynSolType::Address, _) => " as 0x and 40 hexadecimal digits, with the right checksum if in mixed case",
            (DynSolType::Array(_) | DynSolType::FixedArray(..), _) => " as an array",
            (DynSolType::Bool | DynSolType::String | DynSolType::Tuple(_), _) => "",
        };
        format!("{kind}{hint}")
    }

    fn misfit(&self, expected: String, found: String) -> Misfit {
        Misfit::new(self.what, &self.place, &expected, found)
    }
}

/// Returns whether it is below zero, and how large. Never by way of a float: a number beyond 64 bits has to be a text.
pub(super) fn whole_number(value: &Value) -> Option<(bool, U256)> {
    let text = match value {
        Value::Number(number) if number.is_u64() || number.is_i64() => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let (is_negative, digits) = text.strip_prefix('-').map_or((false, text.as_str()), |digits| (true, digits));
    let (digits, radix) = digits.strip_prefix("0x").map_or((digits, 10), |digits| (digits, 16));
    let is_number = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
    let magnitude = is_number.then(|| U256::from_str_radix(digits, radix.into()).ok())??;
    Some((is_negative, magnitude))
}

pub(super) const AMOUNT: &str = "an amount in wei of at most 128 bits, as a number or a text";

pub(super) fn amount(value: &Value) -> Option<u128> {
    match whole_number(value)? {
        (false, amount) => u128::try_from(amount).ok(),
        (true, _) => None,
    }
}

/// Checks an EIP-55 address, whose capitals are a checksum.
pub(super) fn address(text: &str) -> Option<Address> {
    let digits = text.strip_prefix("0x")?;
    let has = |is: fn(&char) -> bool| digits.chars().any(|digit| is(&digit));
    if has(char::is_ascii_uppercase) && has(char::is_ascii_lowercase) {
        return Address::parse_checksummed(text, None).ok();
    }
    hex::decode(digits).ok().and_then(|bytes| <[u8; 20]>::try_from(bytes).ok()).map(Address::from)
}

/// Returns the word at this byte.
pub(super) fn word_at(bytes: &[u8], from: usize) -> Option<[u8; 32]> {
    bytes.get(from..)?.first_chunk().copied()
}

/// Returns the number in that word, if it is none too large.
pub(super) fn number_at(bytes: &[u8], from: usize) -> Option<usize> {
    let word = word_at(bytes, from)?;
    let (high, low) = word.split_last_chunk::<8>()?;
    usize::try_from(u64::from_be_bytes(*low)).ok().filter(|_| high.iter().all(|byte| *byte == 0))
}

pub(super) fn shown(value: &Value) -> String {
    cut(value.to_string(), SHOWN_BYTES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Names members of tuples, which signatures cannot: x, y.
    fn name_members(params: &mut [Param]) {
        for param in params {
            for (member, name) in param.components.iter_mut().zip(["x", "y"]) {
                member.name = name.to_owned();
            }
            name_members(&mut param.components);
        }
    }

    fn call(signature: &str, encoding: Encoding) -> Call {
        let mut function = function(signature).unwrap();
        name_members(&mut function.inputs);
        let sources = (0..function.inputs.len()).map(|at| Source::At(Pointer::new(&format!("/{at}"), encoding)));
        let sources = sources.collect();
        Call::new(function, sources).unwrap()
    }

    fn decoded(call: &Call, body: &Value) -> Vec<DynSolValue> {
        let data = call.encode(body).unwrap();
        assert_eq!(data[..4], call.function.selector()[..]);
        call.function.abi_decode_input(&data[4..]).unwrap()
    }

    fn misfit(signature: &str, body: &Value) -> String {
        call(signature, Encoding::Hex).encode(body).unwrap_err().to_string()
    }

    #[test]
    fn a_transfer_is_encoded_as_the_standard_says() {
        let transfer = call("transfer(address to, uint256 amount)", Encoding::Hex);
        let body = json!(["0x00000000000000000000000000000000000000aa", "1000000000000000000000"]);
        let amount = format!("{:064x}", 1_000_000_000_000_000_000_000_u128);
        let expected = format!("a9059cbb{:064x}{amount}", 0xaa);
        assert_eq!(hex::encode(transfer.encode(&body).unwrap()), expected);
        assert_eq!(transfer.signature(), "transfer(address,uint256)");
    }

    #[test]
    fn every_type_is_read_from_json() {
        let signature = "f(bool a, int8 b, bytes4 c, bytes d, string e, uint16[] f, uint8[2] g, (uint8, (bool)[]) h, \
                         function i)";
        let body = json!([
            true,
            "-128",
            "0x01020304",
            "0x",
            "ü",
            [1, "0xff"],
            [3, 4],
            {"y": [{"x": true}, [false]], "x": 5},
            "0x000102030405060708090a0b0c0d0e0f1011121314151617"
        ]);
        let values = decoded(&call(signature, Encoding::Hex), &body);
        assert_eq!(values[1], DynSolValue::Int(I256::try_from(-128).unwrap(), 8));
        assert_eq!(values[5].as_array().unwrap()[1], DynSolValue::Uint(U256::from(255), 16));
        let tuple = values[7].as_tuple().unwrap();
        assert_eq!(tuple[1].as_array().unwrap()[0], DynSolValue::Tuple(vec![DynSolValue::Bool(true)]));
        let base64 = decoded(&call("f(bytes)", Encoding::Base64), &json!(["AQI="]));
        assert_eq!(base64, [DynSolValue::Bytes(vec![1, 2])]);
    }

    #[test]
    fn what_does_not_fit_is_told_with_argument_place_type_and_what_was_found() {
        let cases = [
            (
                "f(uint8 n)",
                json!([256]),
                "argument 1 (n) at /0: expected uint8 as a whole number or a text with one, found 256",
            ),
            ("f(uint8)", json!([-1]), "argument 1 at /0: expected uint8"),
            ("f(int8)", json!([128]), "expected int8"),
            ("f(int8)", json!(["-129"]), "expected int8"),
            ("f(uint256)", json!([1.5]), "found 1.5"),
            ("f(uint256)", json!([1e30]), "found 1e+30"),
            ("f(uint256)", json!([""]), "found \"\""),
            ("f(uint256)", json!(["1_0"]), "found \"1_0\""),
            ("f(uint256)", json!([format!("0x1{}", "0".repeat(64))]), "expected uint256"),
            ("f(bool)", json!(["true"]), "expected bool, found \"true\""),
            ("f(string)", json!([null]), "expected string, found null"),
            ("f(bytes2)", json!(["0x01"]), "expected bytes2"),
            ("f(bytes)", json!(["01"]), "expected bytes as 0x and hexadecimal digits"),
            ("f(address)", json!(["0xaa"]), "expected address"),
            ("f(address)", json!(["0x5AAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"]), "checksum"),
            ("f(bool, uint8)", json!([true]), "argument 2 at /1: expected uint8, found nothing"),
            ("f(uint8[2] g)", json!([[1]]), "expected uint8[2], found 1 values"),
            ("f((uint8, bool)[] h)", json!([[{"x": 1, "y": 2}]]), "argument 1 (h) at /0/0/y: expected bool, found 2"),
            ("f((uint8) h)", json!([{"x": 1, "z": 2}]), "found a member \"z\", which it has not"),
            ("f((uint8) h)", json!([{}]), "at /0/x: expected uint8, found nothing"),
        ];
        for (signature, body, text) in cases {
            let misfit = misfit(signature, &body);
            assert!(misfit.contains(text), "{misfit}");
        }
        assert!(misfit("f(bool)", &json!(["x".repeat(10_000)])).len() < 200);
    }

    #[test]
    fn literals_and_counts_are_checked_at_the_start() {
        let new = |sources| Call::new(function("f(uint8 n, string s)").unwrap(), sources);
        let of = |value: Value| Source::Literal(value);
        let call = new(vec![of(json!(7)), of(json!("text"))]).unwrap();
        assert!(!call.is_of_body());
        assert_eq!(decoded(&call, &Value::Null)[0], DynSolValue::Uint(U256::from(7), 8));
        assert_eq!(new(vec![of(json!(7))]).unwrap_err(), "has 1, and f(uint8,string) takes 2");
        let fault = new(vec![of(json!(300)), of(json!(""))]).unwrap_err();
        assert!(fault.contains("argument 1 (n)") && fault.contains("found 300"), "{fault}");
    }

    #[test]
    fn functions_are_found_in_abi_files() {
        let entry = |name: &str, kind: &str, mutability: &str| {
            json!({"type": "function", "name": name, "inputs": [{"name": "a", "type": kind}], "outputs": [],
                   "stateMutability": mutability})
        };
        let list = json!([
            entry("f", "uint8", "nonpayable"),
            entry("g", "uint8", "payable"),
            entry("g", "bool", "payable"),
            entry("h", "bool", "view"),
            {"type": "error", "name": "E", "inputs": []}
        ]);
        let artifact = json!({"contractName": "C", "abi": list, "bytecode": "0x"}).to_string();
        let signature = |wanted: &str, pays| function_in(&artifact, wanted, pays).map(|found| found.signature());
        assert_eq!(function_in(&list.to_string(), "f", false).unwrap().signature(), "f(uint8)");
        assert_eq!(signature("g(bool)", true).unwrap(), "g(bool)");
        assert!(signature("g", true).unwrap_err().contains("name one of g(uint8), g(bool)"));
        assert!(signature("x", false).unwrap_err().contains("has no function \"x\"; it has f(uint8)"));
        assert_eq!(signature("f", true).unwrap_err(), "says that f takes no value");
        assert_eq!(signature("h", false).unwrap_err(), "says that h writes nothing");
        assert!(function_in("{}", "f", false).unwrap_err().starts_with("is no ABI"));
    }

    #[test]
    fn errors_and_calls_are_told_with_the_names_of_what_they_hold() {
        let mut errors = Errors::default();
        errors.add("InsufficientBalance(uint256 available, uint256 required)").unwrap();
        errors.add("Other(address,(bytes2,string)[])").unwrap();
        assert!(errors.add("Broken(").is_err());
        let data = |signature: &str, arguments: &str| {
            let hash = alloy_primitives::keccak256(signature);
            [&hash[..4], &hex::decode(arguments).unwrap()].concat()
        };
        let words = format!("{:064x}{:064x}", 1, 2);
        let told = errors.decode(&data("InsufficientBalance(uint256,uint256)", &words));
        assert_eq!(told.as_deref(), Some("InsufficientBalance(available: 1, required: 2)"));
        assert_eq!(errors.decode(&data("InsufficientBalance(uint256,uint256)", &words[..64])), None, "cut off");
        assert_eq!(errors.decode(&data("Unknown()", "")), None);
        let mut of_file = Errors::default();
        of_file.add_file(r#"[{"type":"error","name":"NotAllowed","inputs":[{"name":"n","type":"uint256"}]}]"#);
        assert_eq!(of_file.decode(&data("NotAllowed(uint256)", &words[..64])).as_deref(), Some("NotAllowed(n: 1)"));
        let call = call("f(address to, (bytes2, string)[] notes)", Encoding::Hex);
        let calldata =
            call.encode(&json!(["0x00000000000000000000000000000000000000aa", [["0x0102", "a\"b"]]])).unwrap();
        let to = "0x00000000000000000000000000000000000000aa";
        assert_eq!(call.decode(&calldata).unwrap(), format!("f(to: {to}, notes: [(0x0102, \"a\\\"b\")])"));
    }

    #[test]
    fn amounts_are_whole_and_fit() {
        let amount = |value: Value| Pointer::new("/v", Encoding::Hex).amount(&json!({ "v": value }));
        assert_eq!(amount(json!("0x10")), Ok(16));
        assert_eq!(amount(json!(u128::MAX.to_string())), Ok(u128::MAX));
        for value in [json!(-1), json!("340282366920938463463374607431768211456"), json!(null), json!("1 ether")] {
            assert!(amount(value.clone()).is_err(), "{value}");
        }
    }

    proptest! {
        #[test]
        fn integers_come_back_as_they_were(bytes: [u8; 32], is_hex: bool, is_signed: bool) {
            let number = U256::from_be_bytes(bytes);
            let text = match (is_signed, is_hex) {
                (true, _) => I256::from_raw(number).to_string(),
                (false, true) => format!("0x{number:x}"),
                (false, false) => number.to_string(),
            };
            let signature = if is_signed { "f(int256)" } else { "f(uint256)" };
            let values = decoded(&call(signature, Encoding::Hex), &json!([text]));
            let expected = if is_signed { DynSolValue::Int(I256::from_raw(number), 256) } else { DynSolValue::Uint(number, 256) };
            prop_assert_eq!(values, [expected]);
        }

        #[test]
        fn bytes_and_texts_come_back_as_they_were(bytes: Vec<u8>, text: String, numbers: Vec<i64>) {
            let body = json!([BASE64_STANDARD.encode(&bytes), text, numbers]);
            let values = decoded(&call("f(bytes,string,int64[])", Encoding::Base64), &body);
            let numbers = numbers.into_iter().map(|number| DynSolValue::Int(I256::try_from(number).unwrap(), 64));
            let expected = [DynSolValue::Bytes(bytes), DynSolValue::String(text), DynSolValue::Array(numbers.collect())];
            prop_assert_eq!(values, expected);
        }

        #[test]
        fn no_json_makes_the_reader_panic(text in "[-0-9a-fx._\\[\\]{},:\"]{0,40}") {
            let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
            for kind in ["uint8", "int256", "bytes3", "address", "(bool)[]", "uint8[2]", "function"] {
                let _ = call(&format!("f({kind} a)"), Encoding::Hex).encode(&json!([value]));
            }
        }
    }
}
