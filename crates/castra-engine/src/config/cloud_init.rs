//! Data for cloud-init: texts in the configuration, or files of its project.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Explain, Kind, kind_of_io};
use crate::files::read_regular;

/// Largest text, in bytes: much more than any cloud takes (16 KiB on some).
const MAX_BYTES: u64 = 1 << 20;

/// Beginnings of user data that cloud-init knows ("User data formats" in its documentation): most
/// formats begin with `#`, then those of MIME and gzip.
const USER_DATA: [&[u8]; 4] = [b"#", b"Content-Type:", b"MIME-Version:", &[0x1f, 0x8b]];

/// Data for cloud-init in a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudInit {
    /// User data: a `#cloud-config`, a script, or another of cloud-init's formats.
    pub user_data: CloudInitText,
    /// Network configuration in cloud-init's format.
    pub network_config: Option<CloudInitText>,
}

/// A text for cloud-init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloudInitText {
    /// The text itself.
    Inline(String),
    /// A file, read when the VM boots.
    File {
        /// The file. Absolute.
        path: PathBuf,
        /// Directory of the project, which must hold the file: a configuration may come from
        /// anywhere, and the guest sees what it names.
        root: PathBuf,
    },
}

/// Error for data that cloud-init cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum CloudInitError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file is outside of the project, perhaps by way of a link.
    #[error("{} is outside of the project's directory", path.display())]
    Outside {
        /// The file.
        path: PathBuf,
    },
    /// The file is too large.
    #[error("{} is larger than 1 MiB", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The user data has no format of cloud-init's.
    #[error("`user_data` does not begin as cloud-init wants it")]
    UnknownFormat,
}

impl Explain for CloudInitError {
    fn kind(&self) -> Kind {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => Kind::NotFound,
            Self::Read { source, .. } => kind_of_io(source),
            Self::Outside { .. } | Self::TooLarge { .. } | Self::UnknownFormat => Kind::Data,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { .. } => "`cloud_init` in the VM's [[vms]] names it, relative to \
                castra.toml. A text with line breaks would be the data itself."
                .to_owned(),
            Self::Outside { .. } => {
                "The guest would see it. If it is to, replace the link, or name \
                a copy in the project's directory."
                    .to_owned()
            }
            Self::TooLarge { .. } => "Have the user data fetch what is large.".to_owned(),
            Self::UnknownFormat => "Its first line is `#cloud-config`, `#!/bin/sh` or another of \
                cloud-init's formats."
                .to_owned(),
        })
    }
}

impl CloudInit {
    /// Reads both texts.
    ///
    /// # Errors
    /// Any [`CloudInitError`].
    pub fn read(&self) -> Result<(Vec<u8>, Option<Vec<u8>>), CloudInitError> {
        let user_data = self.user_data.read()?;
        if !USER_DATA.iter().any(|beginning| user_data.starts_with(beginning)) {
            return Err(CloudInitError::UnknownFormat);
        }
        let network_config = self.network_config.as_ref().map(CloudInitText::read).transpose()?;
        Ok((user_data, network_config))
    }
}

impl CloudInitText {
    fn read(&self) -> Result<Vec<u8>, CloudInitError> {
        match self {
            Self::Inline(text) => Ok(text.clone().into_bytes()),
            Self::File { path, root } => read_inside(path, root),
        }
    }
}

fn read_inside(path: &Path, root: &Path) -> Result<Vec<u8>, CloudInitError> {
    let reading = |source| CloudInitError::Read { path: path.to_owned(), source };
    let real = fs::canonicalize(path).map_err(reading)?;
    if !real.starts_with(fs::canonicalize(root).map_err(reading)?) {
        return Err(CloudInitError::Outside { path: path.to_owned() });
    }
    let bytes = read_regular(&real, MAX_BYTES).map_err(reading)?;
    bytes.ok_or_else(|| CloudInitError::TooLarge { path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn of(user_data: CloudInitText) -> CloudInit {
        CloudInit { user_data, network_config: None }
    }

    #[test]
    fn a_text_begins_as_cloud_init_wants_it() {
        for text in ["#cloud-config\n", "#!/bin/sh\ntrue\n", "## template: jinja\n#cloud-config\n"]
        {
            let read = of(CloudInitText::Inline(text.into())).read().expect(text);
            assert_eq!(read, (text.into(), None));
        }
        for text in ["", "packages: [git]\n", " #cloud-config\n"] {
            let error = of(CloudInitText::Inline(text.into())).read().expect_err(text);
            assert!(matches!(error, CloudInitError::UnknownFormat), "{text}");
        }
    }

    #[test]
    fn a_file_is_in_the_project_whatever_leads_to_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let (root, other) = (directory.path().join("project"), directory.path().join("other"));
        fs::create_dir_all(root.join("below")).expect("a directory");
        fs::create_dir(&other).expect("a directory");
        fs::write(root.join("below/data"), "#cloud-config\n").expect("written");
        fs::write(other.join("key"), "#secret").expect("written");
        symlink("below/data", root.join("link")).expect("linked");
        symlink("../other/key", root.join("leak")).expect("linked");
        symlink("../other", root.join("directory")).expect("linked");
        let read = |name: &str| {
            of(CloudInitText::File { path: root.join(name), root: root.clone() }).read()
        };
        for name in ["below/data", "link", "below/../link"] {
            assert_eq!(read(name).expect(name).0, b"#cloud-config\n", "{name}");
        }
        for name in ["leak", "../other/key", "directory/key", "/etc/passwd"] {
            assert!(matches!(read(name), Err(CloudInitError::Outside { .. })), "{name}");
        }
        assert!(matches!(read("none"), Err(CloudInitError::Read { .. })));
        assert!(matches!(read("below"), Err(CloudInitError::Read { .. })));
        let large = vec![b'#'; usize::try_from(MAX_BYTES).expect("fits") + 1];
        fs::write(root.join("large"), large).expect("written");
        assert!(matches!(read("large"), Err(CloudInitError::TooLarge { .. })));
    }
}
