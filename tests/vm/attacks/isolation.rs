//! `--network isolated`: an image whose own service calls out as soon as it boots reaches nothing,
//! not even while a warm template is made of it.

use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};

use castra_test_support::Project;
use castra_test_support::disks::alpine_with_service;

/// Listeners on one port of both loopback addresses of this machine, by TCP and UDP.
struct Listeners {
    port: u16,
    tcp: [TcpListener; 2],
    udp: [UdpSocket; 2],
}

impl Listeners {
    fn new() -> Self {
        // Another test may take the same number elsewhere in the meantime.
        std::iter::repeat_with(Self::try_new).take(50).flatten().next().expect("a free port")
    }

    fn try_new() -> Option<Self> {
        let first = TcpListener::bind("127.0.0.1:0").ok()?;
        let port = first.local_addr().ok()?.port();
        let tcp = [first, TcpListener::bind(("::1", port)).ok()?];
        let udp =
            [UdpSocket::bind(("127.0.0.1", port)).ok()?, UdpSocket::bind(("::1", port)).ok()?];
        tcp.iter().try_for_each(|one| one.set_nonblocking(true)).ok()?;
        udp.iter().try_for_each(|one| one.set_nonblocking(true)).ok()?;
        Some(Self { port, tcp, udp })
    }

    /// Returns everything that has reached them since the last call.
    fn heard(&self) -> Vec<&'static str> {
        let mut heard = Vec::new();
        for (listener, name) in self.tcp.iter().zip(["TCP over IPv4", "TCP over IPv6"]) {
            while is_heard(listener.accept()) {
                heard.push(name);
            }
        }
        for (socket, name) in self.udp.iter().zip(["UDP over IPv4", "UDP over IPv6"]) {
            while is_heard(socket.recv_from(&mut [0; 64])) {
                heard.push(name);
            }
        }
        heard.dedup();
        heard
    }
}

fn is_heard<T>(outcome: std::io::Result<T>) -> bool {
    match outcome {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
            false
        }
    }
}

/// Addresses of this machine, as a guest of QEMU's user network sees it, and of that network's DNS
/// server.
const ADDRESSES: [(&str, &str); 2] = [("10.0.2.2", "10.0.2.3"), ("fec0::2", "fec0::3")];

/// Returns commands that call this machine in every possible way, and its DNS server, and print the
/// answers. All wait for theirs at once.
fn calls(port: u16) -> String {
    let calls = ADDRESSES.iter().map(|(host, dns)| {
        format!(
            "echo udp | timeout 5 nc -u -w 2 {host} {port} &\n\
            (timeout 5 nc -w 2 {host} {port} </dev/null && echo connected {host}) &\n\
            timeout 10 nslookup -type=a castra.invalid {dns} 2>&1 | grep -iE \
            'NXDOMAIN|SERVFAIL|REFUSED|^Name:' &\n"
        )
    });
    calls.chain(["wait\n".to_owned()]).collect()
}

#[test]
fn vm_that_is_isolated_reaches_nothing_from_its_first_instruction() {
    let listeners = Listeners::new();
    let calls = calls(listeners.port);
    let directory = tempfile::tempdir().expect("a directory");
    // IPv6 takes a moment to have an address.
    let script = format!("sleep 2\n({calls}) >/castra-calls 2>&1\necho called >>/castra-calls");
    let image = alpine_with_service(&script, directory.path());
    // A cache of its own, without a template of the image.
    let project = Project::isolated();
    let vm = "[[vms]]\nname = \"vm\"\nmanaged_image = { name = \"caller\", version = \"v1\" }\n";
    project.write("castra.toml", &format!("{}{vm}", image.described_as("caller")));
    let run = |network: &str, command: &str| {
        project
            .run(&[
                "run",
                "--image",
                "caller",
                "--network",
                network,
                "--memory",
                "512 MiB",
                "--",
                "sh",
                "-c",
                command,
            ])
            .ok()
            .text()
    };
    // This makes the template, and its service has called by then.
    let seen = run("isolated", "cat /castra-calls");
    assert!(seen.ends_with("called\n"), "the service has run: {seen}");
    assert_eq!(listeners.heard(), Vec::<&str>::new(), "while the template was made");
    assert_eq!(seen, "called\n");
    let seen = run("isolated", &format!("{calls}echo done"));
    assert_eq!((seen.as_str(), listeners.heard()), ("done\n", Vec::new()));
    // The same template, with the network that was missing when it was made: the calls do arrive.
    run("full", &format!("{calls}echo done"));
    assert_eq!(
        listeners.heard(),
        ["TCP over IPv4", "TCP over IPv6", "UDP over IPv4", "UDP over IPv6"]
    );
}
