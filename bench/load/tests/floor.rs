//! The native echo server, under the load client, which compares what comes back.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// Ends with the test.
struct Floor {
    process: Child,
    address: String,
}

impl Floor {
    fn listening(address: &str) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_kloop-floor"))
            .args(["--listen", address])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the command runs");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("it is a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line of text");
        let address = line.trim().strip_prefix("LISTENS ").expect("an address").to_owned();
        Self { process, address }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Puts the server at `address` under load, twice, so that connections come and go.
fn echoes(address: &str, size: &str) {
    let floor = Floor::listening(address);
    for _ in 0..2 {
        let output = Command::new(env!("CARGO_BIN_EXE_kloop-load"))
            .args(["--target", &format!("floor={}@{}", floor.address, floor.process.id())])
            .args(["--connections", "8", "--size", size, "--duration", "0.1", "--sleep"])
            .args(["--warmup-ms", "0", "--timeout-ms", "2000"])
            .output()
            .expect("the command runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let target = &report["targets"][0];
        assert!(target["requests"].as_u64() >= Some(8), "{target}");
        assert_eq!(target["errors"], 0, "{target}");
    }
}

#[test]
fn it_echoes_over_tcp() {
    echoes("127.0.0.1:0", "1024");
}

#[test]
fn it_keeps_what_a_socket_does_not_take() {
    echoes("127.0.0.1:0", "8000000");
}

#[test]
fn it_echoes_over_unix_sockets() {
    let path = std::env::temp_dir().join(format!("kloop-floor-{}", std::process::id()));
    echoes(&format!("unix:{}", path.display()), "100000");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn it_echoes_datagrams() {
    echoes("udp:127.0.0.1:0", "1024");
}
