//! Newtypes for what could be swapped by mistake: hashes, addresses, nonces, amounts, times.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Why a text is not one of these values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// Not `0x` and the given number of hexadecimal digits.
    #[error("expected 0x and {digits} hexadecimal digits")]
    Hex { digits: usize },
    /// Not an amount such as `2 gwei`.
    #[error("expected a whole amount in wei or an amount with a unit, such as \"2 gwei\", \"0.5 ether\"")]
    Amount,
    /// An id with no character in it, with too many, or with control characters.
    #[error("expected 1 to {} bytes without control characters", RequestId::MAX_BYTES)]
    RequestId,
}

macro_rules! fixed_bytes {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// Returns the bytes, most significant first.
            #[allow(dead_code, reason = "not every type is stored")]
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }

            /// Returns the value in these bytes, if their number is right.
            #[allow(dead_code, reason = "not every type is stored")]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                <[u8; $bytes]>::try_from(bytes).ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "0x{}", hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let wrong = ParseIdError::Hex { digits: $bytes * 2 };
                let digits = text.strip_prefix("0x").ok_or_else(|| wrong.clone())?;
                let mut bytes = [0; $bytes];
                hex::decode_to_slice(digits, &mut bytes).map_err(|_| wrong)?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

fixed_bytes!(Address, 20);
fixed_bytes!(
    /// keccak-256 of a signed transaction's bytes.
    TxHash, 32
);
fixed_bytes!(BlockHash, 32);
fixed_bytes!(
    /// SHA-256 of a message's body: differs for two bodies under one id.
    BodyHash, 32
);

fixed_bytes!(
    /// SHA-256 of an ordering key.
    OrderKey, 32
);

fixed_bytes!(
    /// SHA-256 of all that a request asks for: shows what was torn or edited.
    WriteHash, 32
);
fixed_bytes!(
    /// The key of a record in the contract `Records`.
    RecordId, 32
);
fixed_bytes!(
    /// keccak-256 of a record's content.
    ContentHash, 32
);
fixed_bytes!(
    /// A key of an entry in a contract's log.
    Topic, 32
);

/// Returns the text as one part of a path: RFC 3986, "Unreserved Characters", and the bytes of all else.
pub fn path_segment(text: &str) -> String {
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => segment.push(char::from(byte)),
            _ => segment.push_str(&format!("%{byte:02X}")),
        }
    }
    segment
}

/// Returns the name of what `id` names within `scope`. No two pairs have the same: a scope has no `/` here.
pub fn within(scope: &str, id: &str) -> String {
    format!("{}/{id}", path_segment(scope))
}

impl OrderKey {
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key).into())
    }
}

impl BodyHash {
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }
}

macro_rules! whole_number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl $name {
            /// Returns the value this many further on, or the largest there is.
            pub fn plus(self, more: u64) -> Self {
                Self(self.0.saturating_add(more))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

whole_number!(Nonce);
whole_number!(BlockNumber);
whole_number!(Gas);

/// An amount of the chain's coin in its smallest unit, or a price in it for one unit of gas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Wei(pub u128);

impl Wei {
    pub const GWEI: Wei = Wei(1_000_000_000);

    /// Returns the sum, or the largest amount there is.
    pub fn plus(self, other: Wei) -> Wei {
        Wei(self.0.saturating_add(other.0))
    }

    /// Returns this amount by `numerator / denominator`, rounded up, or the largest amount there is.
    pub fn scaled_up(self, numerator: u128, denominator: u128) -> Wei {
        Wei(self.0.saturating_mul(numerator).div_ceil(denominator.max(1)))
    }
}

impl fmt::Display for Wei {
    /// Writes the amount in the unit that makes it short, without loss.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, decimals, name) = match self.0 {
            0..1_000_000 => return write!(f, "{} wei", self.0),
            1_000_000..1_000_000_000_000_000 => (Wei::GWEI.0, 9, "gwei"),
            _ => (1_000_000_000_000_000_000, 18, "ether"),
        };
        let rest = format!("{:0decimals$}", self.0 % unit);
        match rest.trim_end_matches('0') {
            "" => write!(f, "{} {name}", self.0 / unit),
            digits => write!(f, "{}.{digits} {name}", self.0 / unit),
        }
    }
}

impl FromStr for Wei {
    type Err = ParseIdError;

    /// Reads `"0"`, `"2 gwei"`, `"1.5 gwei"`, `"0.1 ether"`; a number without a unit is in wei.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let decimals: u32 = match unit.trim() {
            "" | "wei" => 0,
            "kwei" => 3,
            "mwei" => 6,
            "gwei" => 9,
            "ether" | "eth" => 18,
            _ => return Err(ParseIdError::Amount),
        };
        let number = number.replace('_', "");
        let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
        let fraction_digits = u32::try_from(fraction.len()).map_err(|_| ParseIdError::Amount)?;
        let missing = decimals.checked_sub(fraction_digits).ok_or(ParseIdError::Amount)?;
        if whole.is_empty() {
            return Err(ParseIdError::Amount);
        }
        format!("{whole}{fraction}")
            .parse::<u128>()
            .ok()
            .and_then(|digits| digits.checked_mul(10u128.checked_pow(missing)?))
            .map(Wei)
            .ok_or(ParseIdError::Amount)
    }
}

/// The id of a request: by default the AMQP `message_id` that the producer set.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// As many bytes as an AMQP `message_id` can have.
    pub const MAX_BYTES: usize = 255;

    /// Returns the id with this text.
    ///
    /// # Errors
    /// When it is empty or longer than [`Self::MAX_BYTES`], or has control characters: logs and terminals would take them
    /// for their own, and databases take no U+0000.
    pub fn new(text: &str) -> Result<Self, ParseIdError> {
        if text.is_empty() || text.len() > Self::MAX_BYTES || text.contains(char::is_control) {
            return Err(ParseIdError::RequestId);
        }
        Ok(Self(text.into()))
    }

    /// Returns the id that tells this one apart from the same one of another scope.
    ///
    /// # Errors
    /// When it is too long.
    pub fn within(&self, scope: &str) -> Result<Self, ParseIdError> {
        Self::new(&within(scope, self.as_str()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A moment as milliseconds since 1970 in UTC: what the journal and the events hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    pub fn now() -> Self {
        #[cfg(test)]
        if let Some(now) = virtual_host::now() {
            return now;
        }
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    /// Returns the time since then by this host's clock; zero where that is behind.
    pub fn age(self) -> Duration {
        self.until(Self::now())
    }

    /// Returns the time from this moment to a later one; zero where that is earlier.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0))
    }

    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)))
    }

    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    /// Writes RFC 3339 with milliseconds, in UTC. A time after the year 9999 is shown as its end: RFC 3339 goes no further.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const END_MS: u64 = 253_402_300_799_999;
        let since_epoch = Duration::from_millis(u64::try_from(self.0).unwrap_or(0).min(END_MS));
        humantime::format_rfc3339_millis(UNIX_EPOCH + since_epoch).fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for Timestamp {
    type Err = humantime::TimestampError;

    /// Reads RFC 3339, from 1970 on.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (local, ahead_ms) = match split_zone(text) {
            Some((local, ahead_ms)) => (humantime::parse_rfc3339(&format!("{local}Z"))?, ahead_ms),
            None => (humantime::parse_rfc3339(text)?, 0),
        };
        let since_epoch = local.duration_since(UNIX_EPOCH).unwrap_or_default();
        let local_ms = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        Ok(Self(local_ms.saturating_sub(ahead_ms).max(0)))
    }
}

/// Splits a time with a numeric zone: the time itself, and by how many milliseconds it is ahead of UTC.
fn split_zone(text: &str) -> Option<(&str, i64)> {
    let (local, zone) = text.split_at_checked(text.len().checked_sub("+00:00".len())?)?;
    let (sign, digits) = match zone.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = digits.split_once(':')?;
    let (hours, minutes): (i64, i64) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then_some((local, sign * (hours * 60 + minutes) * 60_000))
}

/// Returns an id that is the same for the same parts, and differs for others: the beginning of their SHA-256.
pub fn derived<const BYTES: usize>(parts: &[&[u8]]) -> [u8; BYTES] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let mut id = [0; BYTES];
    id.iter_mut().zip(hasher.finalize()).for_each(|(byte, hashed)| *byte = hashed);
    id
}

/// Returns an id that no other call returns, on any host.
pub fn unique() -> String {
    #[cfg(test)]
    if let Some(id) = virtual_host::unique() {
        return id;
    }
    uuid::Uuid::now_v7().to_string()
}

/// A host whose clock and ids a test decides, for everything that runs on this thread: so that a run can be repeated.
#[cfg(test)]
pub(crate) mod virtual_host {
    use std::cell::Cell;

    use tokio::time::Instant;

    use super::Timestamp;

    thread_local! {
        static BEGIN: Cell<Option<Instant>> = const { Cell::new(None) };
        static SKEW_MS: Cell<i64> = const { Cell::new(0) };
        static IDS: Cell<u64> = const { Cell::new(0) };
    }

    /// The clock then follows the runtime's, from noon of 1 January 2030 on.
    pub(crate) fn begin(begin: Instant) {
        BEGIN.set(Some(begin));
        IDS.set(0);
        SKEW_MS.set(0);
    }

    /// Ends the virtual time.
    pub(crate) fn end() {
        BEGIN.set(None);
    }

    /// The host whose turn it is has a clock that is wrong by this.
    pub(crate) fn set_skew(milliseconds: i64) {
        SKEW_MS.set(milliseconds);
    }

    pub(crate) fn skew_ms() -> i64 {
        SKEW_MS.get()
    }

    pub(crate) fn is_on() -> bool {
        BEGIN.get().is_some()
    }

    pub(super) fn now() -> Option<Timestamp> {
        right_now().map(|right| Timestamp(right.0 + SKEW_MS.get()))
    }

    /// Returns the time of a clock that is right.
    pub(crate) fn right_now() -> Option<Timestamp> {
        let elapsed = BEGIN.get()?.elapsed().as_millis();
        Some(Timestamp(1_893_499_200_000 + i64::try_from(elapsed).unwrap_or(0)))
    }

    pub(super) fn unique() -> Option<String> {
        BEGIN.get()?;
        IDS.set(IDS.get() + 1);
        Some(IDS.get().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_with_and_without_a_unit() {
        for (text, wei) in [
            ("0", 0),
            ("7", 7),
            ("2 gwei", 2_000_000_000),
            ("2gwei", 2_000_000_000),
            ("1.5 gwei", 1_500_000_000),
            ("0.1 ether", 100_000_000_000_000_000),
            ("1_000 wei", 1_000),
        ] {
            assert_eq!(text.parse(), Ok(Wei(wei)), "{text}");
        }
        for text in
            ["", "gwei", "-1", "1.5", "2 zwei", "1.0000000001 gwei", "400000000000000000000000 ether", ".5 gwei"]
        {
            assert_eq!(text.parse::<Wei>(), Err(ParseIdError::Amount), "{text}");
        }
    }

    #[test]
    fn amounts_print_as_they_are_read() {
        for text in ["0 wei", "99999 wei", "0.001 gwei", "2 gwei", "1.206617406 gwei", "0.5 ether", "10000 ether"] {
            assert_eq!(text.parse::<Wei>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn hashes_are_read_from_0x_and_their_digits_alone() {
        let address = "0x00000000000000000000000000000000000000ff";
        assert_eq!(address.parse::<Address>().unwrap().to_string(), address);
        for text in
            ["", "0x", "00000000000000000000000000000000000000ff", "0x00000000000000000000000000000000000000fg", "0xff"]
        {
            assert_eq!(text.parse::<Address>(), Err(ParseIdError::Hex { digits: 40 }), "{text}");
        }
    }

    #[test]
    fn times_print_and_read_as_rfc_3339() {
        let time = Timestamp(1_700_000_000_123);
        assert_eq!(time.to_string(), "2023-11-14T22:13:20.123Z");
        assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
    }
}
