//! Host names of VMs.

/// Returns the VM's name as a host name (RFC 1123): labels of letters, digits and inner hyphens.
pub(super) fn hostname(vm: &str) -> String {
    let label = |label: &str| label.replace('_', "-").trim_matches('-').to_owned();
    let labels: Vec<String> = vm.split('.').map(label).filter(|label| !label.is_empty()).collect();
    labels.join(".")
}

#[cfg(test)]
mod tests {
    use super::hostname;

    #[test]
    fn every_vm_name_has_a_host_name() {
        assert_eq!(hostname("web"), "web");
        assert_eq!(hostname("db_1.prod-"), "db-1.prod");
        assert_eq!(hostname("a..b_"), "a.b");
    }
}
