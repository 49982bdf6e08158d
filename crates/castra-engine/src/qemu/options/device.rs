//! Device models, and devices of an image.

use std::fmt;
use std::str::FromStr;

use super::property::{Property, Value};
use super::{OptionError, Property as P};

/// A device of an image, in addition to those of every VM: a model from a closed list, with
/// properties that cannot name anything of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    model: DeviceModel,
    settings: Vec<(Property, Value)>,
}

/// Devices that an image can have. None of them opens a file, a socket or a device of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceModel {
    /// A source of entropy.
    VirtioRng,
    /// A balloon that returns memory that the guest does not use to the host.
    VirtioBalloon,
    /// Generation ID, which informs the guest's kernel that it is a copy of another (QEMU's
    /// docs/specs/vmgenid.txt).
    GenerationId,
    /// A network card without a cable.
    VirtioNet,
    /// A network card without a cable.
    E1000,
    /// A network card without a cable.
    E1000e,
    /// A network card without a cable.
    Rtl8139,
    /// A USB 3 controller.
    Xhci,
    /// A USB 2 controller.
    Ehci,
    /// A keyboard on USB.
    UsbKeyboard,
    /// A mouse on USB.
    UsbMouse,
    /// A pointer with absolute positions, on USB.
    UsbTablet,
    /// A keyboard on virtio.
    VirtioKeyboard,
    /// A mouse on virtio.
    VirtioMouse,
    /// A pointer with absolute positions, on virtio.
    VirtioTablet,
    /// A graphics card that every system supports, for boot loaders that need one.
    Vga,
    /// A graphics card without the legacy parts of VGA.
    BochsDisplay,
    /// A watchdog, which resets the guest.
    Watchdog,
}

impl DeviceModel {
    /// Every model.
    pub const ALL: [Self; 18] = [
        Self::VirtioRng,
        Self::VirtioBalloon,
        Self::GenerationId,
        Self::VirtioNet,
        Self::E1000,
        Self::E1000e,
        Self::Rtl8139,
        Self::Xhci,
        Self::Ehci,
        Self::UsbKeyboard,
        Self::UsbMouse,
        Self::UsbTablet,
        Self::VirtioKeyboard,
        Self::VirtioMouse,
        Self::VirtioTablet,
        Self::Vga,
        Self::BochsDisplay,
        Self::Watchdog,
    ];

    /// Returns QEMU's name for the model.
    pub fn name(self) -> &'static str {
        match self {
            Self::VirtioRng => "virtio-rng-pci",
            Self::VirtioBalloon => "virtio-balloon-pci",
            Self::GenerationId => "vmgenid",
            Self::VirtioNet => "virtio-net-pci",
            Self::E1000 => "e1000",
            Self::E1000e => "e1000e",
            Self::Rtl8139 => "rtl8139",
            Self::Xhci => "qemu-xhci",
            Self::Ehci => "usb-ehci",
            Self::UsbKeyboard => "usb-kbd",
            Self::UsbMouse => "usb-mouse",
            Self::UsbTablet => "usb-tablet",
            Self::VirtioKeyboard => "virtio-keyboard-pci",
            Self::VirtioMouse => "virtio-mouse-pci",
            Self::VirtioTablet => "virtio-tablet-pci",
            Self::Vga => "VGA",
            Self::BochsDisplay => "bochs-display",
            Self::Watchdog => "i6300esb",
        }
    }

    /// Returns the properties that can be set.
    pub fn properties(self) -> &'static [Property] {
        match self {
            Self::VirtioRng => &[P::MaxBytes, P::Period, P::DisableLegacy, P::DisableModern, P::Id],
            Self::VirtioBalloon => {
                &[P::DeflateOnOom, P::FreePageReporting, P::DisableLegacy, P::DisableModern, P::Id]
            }
            Self::GenerationId => &[P::Guid, P::Id],
            Self::VirtioNet => &[P::Mac, P::RomFile, P::DisableLegacy, P::DisableModern, P::Id],
            Self::E1000 | Self::E1000e | Self::Rtl8139 => &[P::Mac, P::RomFile, P::Id],
            Self::UsbKeyboard | Self::UsbMouse | Self::UsbTablet => &[P::Bus, P::Id],
            Self::VirtioKeyboard | Self::VirtioMouse | Self::VirtioTablet => {
                &[P::DisableLegacy, P::DisableModern, P::Id]
            }
            Self::Xhci | Self::Ehci | Self::Vga | Self::BochsDisplay | Self::Watchdog => &[P::Id],
        }
    }
}

impl Device {
    /// Returns a device of this model with QEMU's defaults.
    pub fn new(model: DeviceModel) -> Self {
        Self { model, settings: Vec::new() }
    }

    /// Returns a generation ID that is different each time QEMU starts.
    pub fn new_generation_id() -> Self {
        Self {
            model: DeviceModel::GenerationId,
            settings: vec![(Property::Guid, Value::Guid(None))],
        }
    }

    /// Returns the device's model.
    pub fn model(&self) -> DeviceModel {
        self.model
    }
}

impl FromStr for Device {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default();
        let model = DeviceModel::ALL.into_iter().find(|model| model.name() == name);
        let model = model.ok_or_else(|| OptionError::Device(name.to_owned()))?;
        let mut device = Self::new(model);
        for part in parts {
            let name = part.split_once('=').map_or(part, |(name, _)| name);
            let property =
                model.properties().iter().copied().find(|property| property.name() == name);
            let property =
                property.ok_or_else(|| OptionError::Property { model, found: name.to_owned() })?;
            if device.settings.iter().any(|(known, _)| *known == property) {
                return Err(OptionError::Twice(property.name()));
            }
            // Without `=`, QEMU would read it as `on`.
            let value = part[name.len()..].strip_prefix('=');
            let value =
                value.ok_or_else(|| OptionError::Value { property, found: String::new() })?;
            device.settings.push((property, property.read(value)?));
        }
        Ok(device)
    }
}

/// Formats the device as QEMU's `-device` takes it.
impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model.name())?;
        self.settings
            .iter()
            .try_for_each(|(property, value)| write!(f, ",{}={value}", property.name()))
    }
}
