//! Entries of the Boot Loader Specification, type 1.

use super::variables::Variables;
use super::version;

/// An entry: a small file `loader/entries/ID.conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlsEntry {
    /// Name of the file without `.conf`.
    pub(super) id: String,
    pub(super) title: String,
    /// Version of the kernel, or else the entry's name.
    pub(super) version: String,
    pub(super) kernel: String,
    /// Files that are concatenated.
    pub(super) initramfs: Vec<String>,
    pub(super) options: String,
}

impl BlsEntry {
    /// Parses an entry; `None` if it does not boot a Linux kernel.
    pub(super) fn parse(id: &str, text: &str, variables: &Variables) -> Option<Self> {
        let values = |key: &'static str| {
            text.lines().filter_map(move |line| {
                let (name, value) = line.trim().split_once(char::is_whitespace)?;
                (name == key).then(|| variables.expand(value.trim()))
            })
        };
        let first = |key| values(key).next();
        let initramfs = values("initrd");
        Some(Self {
            id: id.to_owned(),
            title: first("title").unwrap_or_default(),
            version: first("version").unwrap_or_else(|| id.to_owned()),
            kernel: first("linux")?,
            initramfs: initramfs.flat_map(|line| words(&line)).collect(),
            options: values("options").collect::<Vec<_>>().join(" "),
        })
    }

    /// Returns `true` for an entry that repairs a system: it boots another kernel than usual.
    fn is_rescue(&self) -> bool {
        self.id.contains("rescue") || self.version.contains("rescue")
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// Puts entries in the order in which they are tried: the chosen one, then the newest.
pub(super) fn order(entries: &mut Vec<BlsEntry>, chosen: &str) {
    let is_chosen = |entry: &BlsEntry| {
        !chosen.is_empty()
            && (entry.id == chosen || entry.title == chosen || matches(chosen, &entry.id))
    };
    entries.retain(|entry| is_chosen(entry) || !entry.is_rescue());
    entries.sort_by(|left, right| {
        let by_choice = is_chosen(right).cmp(&is_chosen(left));
        by_choice
            .then_with(|| version::compare(&right.version, &left.version))
            .then_with(|| version::compare(&right.id, &left.id))
    });
}

/// Matches a pattern of `loader.conf`: an identifier with `.conf` or with `*` at its end.
fn matches(pattern: &str, id: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => id.starts_with(beginning),
        None => pattern.strip_suffix(".conf") == Some(id),
    }
}

/// Sample of what Fedora makes.
#[cfg(test)]
pub(super) const FEDORA: &str = "title Fedora Linux (6.11.4-301.fc41.x86_64) 41\n\
    version 6.11.4-301.fc41.x86_64\nlinux /vmlinuz-6.11.4-301.fc41.x86_64\n\
    initrd /initramfs-6.11.4-301.fc41.x86_64.img $tuned_initrd\n\
    options root=UUID=a ro rootflags=subvol=root $kernelopts\noptions quiet\n\
    grub_users $grub_users\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, version: &str) -> BlsEntry {
        let text = format!("linux /vmlinuz\nversion {version}\n");
        BlsEntry::parse(id, &text, &Variables::default()).expect("an entry")
    }

    #[test]
    fn variables_are_expanded() {
        let mut variables = Variables::default();
        variables.set_default("kernelopts".to_owned(), "console=ttyS0".to_owned());
        let entry = BlsEntry::parse("a", FEDORA, &variables).expect("an entry");
        assert_eq!(entry.kernel, "/vmlinuz-6.11.4-301.fc41.x86_64");
        assert_eq!(entry.initramfs, ["/initramfs-6.11.4-301.fc41.x86_64.img"]);
        let options = "root=UUID=a ro rootflags=subvol=root console=ttyS0 quiet";
        assert_eq!(entry.options, options);
        assert_eq!(BlsEntry::parse("a", "title x\nefi /shell.efi", &variables), None);
    }

    #[test]
    fn the_chosen_entry_is_first_and_else_the_newest() {
        let entries = [
            entry("m-6.9", "6.9"),
            entry("m-0-rescue", "0-rescue"),
            entry("m-6.11", "6.11"),
            entry("m-6.10", "6.10"),
        ];
        let order_by = |chosen: &str| {
            let mut entries = entries.to_vec();
            order(&mut entries, chosen);
            entries.into_iter().map(|entry| entry.id).collect::<Vec<_>>()
        };
        assert_eq!(order_by(""), ["m-6.11", "m-6.10", "m-6.9"]);
        assert_eq!(order_by("gone"), ["m-6.11", "m-6.10", "m-6.9"]);
        assert_eq!(order_by("m-6.10"), ["m-6.10", "m-6.11", "m-6.9"]);
        assert_eq!(order_by("m-6.9.conf"), ["m-6.9", "m-6.11", "m-6.10"]);
        assert_eq!(order_by("m-0-rescue")[0], "m-0-rescue");
    }
}
