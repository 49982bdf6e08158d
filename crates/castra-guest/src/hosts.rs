//! `/etc/hosts`: `localhost` and the VM's own name resolve without a network.

/// Address that Debian and others give to a machine's own name, so that it is not `localhost`'s.
const OWN_ADDRESS: &str = "127.0.1.1";
/// Suffix of the agent's own line, which is replaced when the VM's name changes.
const MARK: &str = "# castra";
/// Addresses of `localhost`, and the line to add for each that is missing.
const LOCALHOST: [(&str, &str); 2] =
    [("127.0.0.1", "127.0.0.1\tlocalhost"), ("::1", "::1\tlocalhost ip6-localhost ip6-loopback")];

/// Returns the file's content with the missing lines. Existing lines stay, except the agent's own
/// with an earlier name.
pub(crate) fn complete(current: &str, hostname: &str) -> String {
    let kept: Vec<&str> = current.lines().filter(|line| !line.trim_end().ends_with(MARK)).collect();
    let mut lines: Vec<String> = kept.iter().map(|line| (*line).to_owned()).collect();
    for (address, line) in LOCALHOST {
        if !kept.iter().any(|line| words(line).next() == Some(address)) {
            lines.push(line.to_owned());
        }
    }
    if !kept.iter().any(|line| words(line).skip(1).any(|name| name == hostname)) {
        let short = hostname.split('.').next().filter(|short| *short != hostname);
        let names = short.map_or(hostname.to_owned(), |short| format!("{hostname} {short}"));
        lines.push(format!("{OWN_ADDRESS}\t{names}\t{MARK}"));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// Returns the words of a line before its comment.
fn words(line: &str) -> std::str::SplitWhitespace<'_> {
    line.split('#').next().unwrap_or_default().split_whitespace()
}

#[cfg(test)]
mod tests {
    use super::complete;

    #[test]
    fn an_empty_file_gets_all_and_a_complete_one_nothing() {
        let full = complete("", "web.shop");
        assert_eq!(
            full,
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
            127.0.1.1\tweb.shop web\t# castra\n"
        );
        assert_eq!(complete(&full, "web.shop"), full);
        let own = "127.0.0.1 localhost web\n::1 localhost\n# a comment\n";
        assert_eq!(complete(own, "web"), own);
    }

    #[test]
    fn a_clones_name_takes_the_place_of_the_originals() {
        let clone = complete(&complete("10.0.0.1 db\n", "one"), "two");
        assert!(clone.starts_with("10.0.0.1 db\n") && clone.contains("two"), "{clone}");
        assert!(!clone.contains("one"), "{clone}");
    }
}
