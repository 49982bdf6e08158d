//! Properties of devices: names, and values of kinds that cannot name anything of the host.

use std::fmt;

use super::{OptionError, is_name, on_or_off, switch};

/// A property of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Property {
    /// Number of bytes of entropy that a guest gets in each period.
    MaxBytes,
    /// Length of that period, in milliseconds.
    Period,
    /// Returns memory to a guest that runs out of it.
    DeflateOnOom,
    /// Makes the guest report pages that it has freed.
    FreePageReporting,
    /// Disables the interface of virtio 0.9.
    DisableLegacy,
    /// Disables the interface of virtio 1.0.
    DisableModern,
    /// Generation ID.
    Guid,
    /// Hardware address of the card.
    Mac,
    /// Boot ROM of the card; the only permitted value is none.
    RomFile,
    /// A name for this device.
    Id,
    /// Bus of the device: the name of a device, a dot and a number.
    Bus,
}

/// Value of a [`Property`]. No kind of value can be a path, an address or the name of an object
/// that is not a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `on` or `off`.
    Switch(bool),
    /// A number of at most 18 digits.
    Number(u64),
    /// A hardware address.
    Mac([u8; 6]),
    /// 16 bytes; `None` for a random ID.
    Guid(Option<[u8; 16]>),
    /// A name.
    Name(Name),
    /// An empty text.
    Nothing,
}

/// A name: letters, digits, `.`, `_` and `-`, starting with a letter. Created only by
/// [`Property::read`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

/// Maximum number of digits, so that a number fits everywhere.
const MAX_DIGITS: usize = 18;

/// Positions of the dashes in a GUID.
const DASHES: [usize; 4] = [8, 13, 18, 23];

impl Property {
    /// Returns QEMU's name for the property.
    pub fn name(self) -> &'static str {
        match self {
            Self::MaxBytes => "max-bytes",
            Self::Period => "period",
            Self::DeflateOnOom => "deflate-on-oom",
            Self::FreePageReporting => "free-page-reporting",
            Self::DisableLegacy => "disable-legacy",
            Self::DisableModern => "disable-modern",
            Self::Guid => "guid",
            Self::Mac => "mac",
            Self::RomFile => "romfile",
            Self::Id => "id",
            Self::Bus => "bus",
        }
    }

    /// Describes the kind of value that the property takes, for messages.
    pub fn wanted(self) -> &'static str {
        match self {
            Self::MaxBytes | Self::Period => "a number",
            Self::DeflateOnOom
            | Self::FreePageReporting
            | Self::DisableLegacy
            | Self::DisableModern => "on or off",
            Self::Guid => "`auto` or a GUID",
            Self::Mac => "a hardware address",
            Self::RomFile => "empty",
            Self::Id | Self::Bus => "a name",
        }
    }

    /// Returns an example with a value.
    pub fn example(self) -> &'static str {
        match self {
            Self::MaxBytes => "max-bytes=1024",
            Self::Period => "period=1000",
            Self::DeflateOnOom => "deflate-on-oom=on",
            Self::FreePageReporting => "free-page-reporting=on",
            Self::DisableLegacy => "disable-legacy=on",
            Self::DisableModern => "disable-modern=off",
            Self::Guid => "guid=auto",
            Self::Mac => "mac=52:54:00:12:34:56",
            Self::RomFile => "romfile=",
            Self::Id => "id=usb",
            Self::Bus => "bus=usb.0",
        }
    }

    /// Returns a regular expression for its values, for the schema of `castra.toml`.
    pub fn pattern(self) -> &'static str {
        match self {
            Self::MaxBytes | Self::Period => "(0|[1-9][0-9]{0,17})",
            Self::DeflateOnOom
            | Self::FreePageReporting
            | Self::DisableLegacy
            | Self::DisableModern => "(on|off)",
            Self::Guid => "(auto|[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})",
            Self::Mac => "[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}",
            Self::RomFile => "",
            Self::Id | Self::Bus => "[A-Za-z][A-Za-z0-9._-]{0,63}",
        }
    }

    /// Parses a value.
    ///
    /// # Errors
    /// [`OptionError::Value`].
    pub(super) fn read(self, text: &str) -> Result<Value, OptionError> {
        let value = match self {
            Self::MaxBytes | Self::Period => number(text).map(Value::Number),
            Self::DeflateOnOom
            | Self::FreePageReporting
            | Self::DisableLegacy
            | Self::DisableModern => switch(text).map(Value::Switch),
            Self::Guid if text == "auto" => Some(Value::Guid(None)),
            Self::Guid => guid(text).map(|guid| Value::Guid(Some(guid))),
            Self::Mac => mac(text).map(Value::Mac),
            Self::RomFile => text.is_empty().then_some(Value::Nothing),
            Self::Id | Self::Bus => name(text).map(Value::Name),
        };
        value.ok_or_else(|| OptionError::Value { property: self, found: text.to_owned() })
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch(is_on) => f.write_str(on_or_off(*is_on)),
            Self::Number(number) => write!(f, "{number}"),
            Self::Mac([a, b, c, d, e, g]) => {
                write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
            Self::Guid(None) => f.write_str("auto"),
            Self::Guid(Some(bytes)) => {
                let mut digits = crate::hex::hex(bytes);
                DASHES.into_iter().for_each(|at| digits.insert(at, '-'));
                f.write_str(&digits)
            }
            Self::Name(Name(name)) => f.write_str(name),
            Self::Nothing => Ok(()),
        }
    }
}

/// Parses a number in canonical form: without a sign, a leading zero or a unit.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok().filter(|_| text.len() <= MAX_DIGITS)?;
    (number.to_string() == text).then_some(number)
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    bytes?.try_into().ok()
}

fn guid(text: &str) -> Option<[u8; 16]> {
    let is_grouped = DASHES.into_iter().all(|at| text.as_bytes().get(at) == Some(&b'-'));
    let digits: Vec<char> = text.chars().filter(|one| *one != '-').collect();
    let pairs = digits.chunks(2).map(|pair| byte(&pair.iter().collect::<String>()));
    let bytes: Option<Vec<u8>> = pairs.collect();
    bytes?.try_into().ok().filter(|_| is_grouped && text.len() == 36)
}

/// Parses two hexadecimal digits.
fn byte(text: &str) -> Option<u8> {
    let is_two = text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_two.then(|| u8::from_str_radix(text, 16).ok())?
}

fn name(text: &str) -> Option<Name> {
    (is_name(text) && text.starts_with(|first: char| first.is_ascii_alphabetic()))
        .then(|| Name(text.to_owned()))
}
