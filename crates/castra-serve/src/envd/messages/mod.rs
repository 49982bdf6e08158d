//! Messages of the services in a sandbox, in both of their encodings: protobuf, and JSON as
//! protobuf defines it. Names and numbers are those of the published SDKs (PyPI `e2b` 2.63.0).

pub(crate) mod filesystem;
pub(crate) mod process;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A message in both encodings.
pub(crate) trait Message:
    prost::Message + Default + Serialize + DeserializeOwned + 'static
{
}

impl<M: prost::Message + Default + Serialize + DeserializeOwned + 'static> Message for M {}

/// Bytes as base64, which JSON has them as.
mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// 64-bit numbers as text, which JSON has them as.
mod text_number {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Text(String),
    }

    pub(super) fn serialize<S: Serializer>(number: &i64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&number.to_string())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
        match Either::deserialize(from)? {
            Either::Number(number) => Ok(number),
            Either::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

/// Defines how a field with an enumeration is named in JSON.
macro_rules! named_enumeration {
    ($module:ident, $kind:ty) => {
        mod $module {
            use serde::de::Error as _;
            use serde::{Deserialize, Deserializer, Serializer};

            #[derive(Deserialize)]
            #[serde(untagged)]
            enum Either {
                Number(i32),
                Name(String),
            }

            pub(super) fn serialize<S: Serializer>(number: &i32, to: S) -> Result<S::Ok, S::Error> {
                let known = <$kind>::try_from(*number).unwrap_or_default();
                to.serialize_str(known.as_str_name())
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i32, D::Error> {
                match Either::deserialize(from)? {
                    Either::Number(number) => Ok(number),
                    Either::Name(name) => <$kind>::from_str_name(&name)
                        .map(|known| known as i32)
                        .ok_or_else(|| D::Error::custom(format!("unknown value {name}"))),
                }
            }
        }
    };
}
pub(crate) use named_enumeration;
