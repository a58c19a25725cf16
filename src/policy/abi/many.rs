//! Functions that do for many what others do for one: calls of the one are joined to a call of the other, and taken apart again.

use alloy_dyn_abi::{DynSolType, DynSolValue, JsonAbiExt, Specifier};
use alloy_json_abi::{Function, Param};

/// A function, and the one that does the same for many. Either each argument is an array of the other's arguments, in their
/// order: `keep(bytes32,uint256)` and `keepMany(bytes32[],uint256[])`. Or there is one argument, an array of tuples of them:
/// `keepMany((bytes32,uint256)[])`.
#[derive(Debug, Clone)]
pub struct Many {
    one: Selected,
    many: Selected,
    are_tuples: bool,
}

/// A function with the first bytes of its calls, which are a hash to work out.
#[derive(Debug, Clone)]
struct Selected {
    function: Function,
    selector: [u8; 4],
}

impl Selected {
    fn new(function: &Function) -> Self {
        Self { function: function.clone(), selector: function.selector().0 }
    }

    fn arguments(&self, calldata: &[u8]) -> Option<Vec<DynSolValue>> {
        self.function.abi_decode_input(calldata.strip_prefix(&self.selector)?).ok()
    }

    fn call(&self, arguments: &[DynSolValue]) -> Option<Vec<u8>> {
        let arguments = self.function.abi_encode_input_raw(arguments).ok()?;
        Some([&self.selector[..], &arguments].concat())
    }
}

impl Many {
    /// Checks that `many` does for many what `one` does for one.
    pub fn new(one: &Function, many: &Function) -> Result<Self, String> {
        let wanted = kinds(&one.inputs)?;
        let array = |kind: &DynSolType| DynSolType::Array(Box::new(kind.clone()));
        let arrays: Vec<_> = wanted.iter().map(array).collect();
        let tuples = [array(&DynSolType::Tuple(wanted))];
        let found = kinds(&many.inputs)?;
        let are_tuples = found == tuples;
        if one.inputs.is_empty() || (found != arrays && !are_tuples) {
            let listed = |kinds: &[DynSolType]| kinds.iter().map(DynSolType::to_string).collect::<Vec<_>>().join(",");
            return Err(format!(
                "does not do for many what {} does for one; expected the arguments ({}) or ({})",
                one.signature(),
                listed(&arrays),
                listed(&tuples),
            ));
        }
        Ok(Self { one: Selected::new(one), many: Selected::new(many), are_tuples })
    }

    /// Returns the first bytes of a call of the function for many.
    pub fn selector(&self) -> [u8; 4] {
        self.many.selector
    }

    /// Returns whether this calls the function for one.
    pub fn is_for(&self, calldata: &[u8]) -> bool {
        calldata.starts_with(&self.one.selector)
    }

    /// Returns the call that does what these do, in their order. `None` where one of them does not call the function
    /// for one.
    pub fn join<'c>(&self, calls: impl Iterator<Item = &'c [u8]>) -> Option<Vec<u8>> {
        let rows = calls.map(|call| self.one.arguments(call)).collect::<Option<Vec<_>>>()?;
        let values = if self.are_tuples {
            vec![DynSolValue::Array(rows.into_iter().map(DynSolValue::Tuple).collect())]
        } else {
            let mut columns = vec![Vec::with_capacity(rows.len()); self.one.function.inputs.len()];
            for row in rows {
                columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
            }
            columns.into_iter().map(DynSolValue::Array).collect()
        };
        self.many.call(&values)
    }

    /// Returns the calls that this was joined from. `None` where it does not call the function for many.
    pub fn split(&self, calldata: &[u8]) -> Option<Vec<Vec<u8>>> {
        let values = self.many.arguments(calldata)?;
        let columns = values.iter().map(DynSolValue::as_array).collect::<Option<Vec<_>>>()?;
        let encode = |row: &[DynSolValue]| self.one.call(row);
        if self.are_tuples {
            return columns.into_iter().flatten().map(|row| encode(row.as_tuple()?)).collect();
        }
        let length = columns.first()?.len();
        if columns.iter().any(|column| column.len() != length) {
            return None;
        }
        let row = |index| columns.iter().map(|column| column.get(index).cloned()).collect::<Option<Vec<_>>>();
        (0..length).map(|index| encode(&row(index)?)).collect()
    }
}

fn kinds(params: &[Param]) -> Result<Vec<DynSolType>, String> {
    params.iter().map(|param| Specifier::<DynSolType>::resolve(param).map_err(|error| error.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::abi::function;

    fn many(one: &str, many: &str) -> Result<Many, String> {
        Many::new(&function(one).unwrap(), &function(many).unwrap())
    }

    #[test]
    fn arguments_must_be_arrays_of_the_others_in_their_order() {
        for (one, of_many) in [
            ("f(uint8)", "g(uint8[])"),
            ("f(bytes32 id, string text)", "g(bytes32[] ids, string[])"),
            ("f(bytes32,(bool,uint8[])[])", "g((bytes32,(bool,uint8[])[])[] all)"),
            ("f((bool,uint8))", "g((bool,uint8)[])"),
        ] {
            many(one, of_many).unwrap();
        }
        for of_many in ["g()", "g(uint8[],bool)", "g(bool[],uint8[])", "g(uint8[2],bool[2])", "g((bool,uint8)[])"] {
            let fault = many("f(uint8,bool)", of_many).unwrap_err();
            assert!(fault.ends_with("expected the arguments (uint8[],bool[]) or ((uint8,bool)[])"), "{fault}");
        }
        assert!(many("f()", "g()").is_err(), "nothing would say how many");
    }

    /// Solidity, "Contract ABI Specification", written out by hand.
    #[test]
    fn a_joined_call_is_encoded_as_the_specification_says() {
        let many = many("f(uint8,bool)", "g(uint8[],bool[])").unwrap();
        let word = |number: u8| format!("{number:064x}");
        let call = |a, b| hex::decode(format!("{}{}{}", hex::encode(many.one.selector), word(a), word(b))).unwrap();
        let calls = [call(7, 1), call(9, 0)];
        let joined = many.join(calls.iter().map(Vec::as_slice)).unwrap();
        let words: Vec<_> = [0x40, 0xa0, 2, 7, 9, 2, 1, 0].into_iter().map(word).collect();
        assert_eq!(hex::encode(&joined), format!("{}{}", hex::encode(many.many.selector), words.concat()));
        assert_eq!(many.split(&joined).unwrap(), calls);
        assert!(many.is_for(&calls[0]) && !many.is_for(&joined));
        assert!(many.join([joined.as_slice()].into_iter()).is_none(), "not a call for one");
        assert!(many.split(&calls[0]).is_none(), "not a call for many");
        assert!(many.split(&joined[..joined.len() - 1]).is_none(), "cut off");
    }

    proptest! {
        #[test]
        fn what_was_joined_is_taken_apart_to_the_same(rows in prop::collection::vec(
            (any::<u64>(), prop::collection::vec(any::<u8>(), 0..70), prop::collection::vec(any::<bool>(), 0..3)), 1..20,
        )) {
            for of_many in ["g(uint64[],bytes[],bool[][])", "g((uint64,bytes,bool[])[])"] {
                let many = many("f(uint64,bytes,bool[])", of_many).unwrap();
                let calls: Vec<_> = rows.iter().map(|(number, bytes, flags)| many.one.function.abi_encode_input(&[
                    DynSolValue::Uint(alloy_primitives::U256::from(*number), 64),
                    DynSolValue::Bytes(bytes.clone()),
                    DynSolValue::Array(flags.iter().map(|flag| DynSolValue::Bool(*flag)).collect()),
                ]).unwrap()).collect();
                let joined = many.join(calls.iter().map(Vec::as_slice)).unwrap();
                prop_assert_eq!(many.split(&joined).unwrap(), calls);
            }
        }

        #[test]
        fn no_bytes_are_too_strange_to_be_looked_at(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let many = many("f(bytes)", "g(bytes[])").unwrap();
            prop_assert!(many.split(&bytes).is_none());
            for (place, byte) in many.many.selector.iter().enumerate().take(bytes.len()) {
                bytes[place] = *byte;
            }
            let _ = many.split(&bytes);
        }
    }
}
