//! The command against small servers made of threads: good ones, and each kind of bad one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

/// Serves every connection with `serve` on a thread of its own, for as long as the test runs.
fn server(host: &str, serve: fn(TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind((host, 0)).expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { break };
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Calls `reply` with each chunk and what came before it, and writes what it makes of the chunk.
fn each_chunk(mut stream: TcpStream, mut reply: impl FnMut(usize, &mut Vec<u8>) -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        let mut chunk = buffer[..count].to_vec();
        let go_on = reply(total, &mut chunk);
        total += count;
        if stream.write_all(&chunk).is_err() || !go_on {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

fn echo(stream: TcpStream) {
    each_chunk(stream, |_, _| true);
}

/// A UDP server that calls `reply` for each datagram; what that makes of it is sent back, unless it
/// is empty.
fn datagram_server(mut reply: impl FnMut(&mut Vec<u8>) + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("a bound socket has an address");
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            let mut datagram = buffer[..count].to_vec();
            reply(&mut datagram);
            if !datagram.is_empty() {
                // The client's socket may be gone.
                let _ = socket.send_to(&datagram, from);
            }
        }
    });
    address
}

fn load(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kloop-load"))
        .args(arguments)
        .output()
        .expect("the command runs")
}

fn short_run(target: &str, more: &[&str]) -> Output {
    // Of an option that is given twice, the last counts.
    let mut arguments = vec!["--target", target, "--connections", "4", "--warmup-ms", "0"];
    arguments.extend(["--timeout-ms", "300", "--sleep"]);
    arguments.extend(more);
    load(&arguments)
}

fn report(output: &Output) -> Value {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

#[test]
fn two_targets_are_visited_in_rounds() {
    let pid = std::process::id();
    let first = format!("first={}@{pid}", server("127.0.0.1", echo));
    let second = format!("second={}", server("127.0.0.1", echo));
    let report = report(&load(&[
        "--target",
        &first,
        "--target",
        &second,
        "--connections",
        "3",
        "--size",
        "1000",
        "--rounds",
        "4",
        "--burst-ms",
        "20",
        "--warmup-ms",
        "10",
        "--sleep",
    ]));
    assert_eq!(report["rounds"], 4);
    assert_eq!(report["burst_ms"], 20);
    let targets = report["targets"].as_array().unwrap();
    assert_eq!((&targets[0]["name"], &targets[1]["name"]), (&"first".into(), &"second".into()));
    for target in targets {
        assert_eq!(target["errors"], 0);
        assert_eq!((&target["connections"], &target["size"]), (&3.into(), &1000.into()));
        let rounds = target["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), 4);
        let requests: f64 = rounds.iter().map(|round| number(&round["requests"])).sum();
        assert_eq!(number(&target["requests"]), requests);
        assert!(rounds.iter().all(|round| number(&round["requests"]) >= 3.0));
        assert!(rounds.iter().all(|round| number(&round["seconds"]) >= 0.02));
        let latency = &target["latency_us"];
        assert!(number(&latency["p50"]) > 0.0);
        assert!(number(&latency["p99"]) <= number(&latency["max"]));
        assert!(number(&target["requests_per_second"]) > 0.0);
        assert!(number(&target["client_cpu_us_per_request"]) > 0.0);
    }
    assert!(number(&targets[0]["server_cpu_us_per_request"]) > 0.0);
    assert_eq!(targets[1]["server_cpu_us_per_request"], Value::Null);
    assert_eq!(targets[1]["rounds"][0]["server_cpu_us"], Value::Null);
}

#[test]
fn large_echoes_outgrow_the_socket_buffers() {
    // Each side's buffers are filled, so both partial writes and partial reads happen.
    let target = format!("big={}", server("127.0.0.1", echo));
    let report = report(&load(&[
        "--target",
        &target,
        "--connections",
        "2",
        "--size",
        "5000000",
        "--duration",
        "0.3",
    ]));
    let target = &report["targets"][0];
    assert_eq!(target["errors"], 0);
    assert!(number(&target["requests"]) >= 2.0);
    assert_eq!(target["rounds"].as_array().unwrap().len(), 1);
}

#[test]
fn ipv6_targets_work() {
    if TcpListener::bind(("::1", 0)).is_err() {
        eprintln!("no IPv6 here");
        return;
    }
    let target = format!("six={}", server("::1", echo));
    let report = report(&short_run(&target, &["--size", "1", "--duration", "0.05"]));
    assert!(number(&report["targets"][0]["requests"]) >= 4.0);
}

#[test]
fn unix_targets_work() {
    let path = std::env::temp_dir().join(format!("kloop-load-{}", std::process::id()));
    let listener = UnixListener::bind(&path).expect("a new path");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { break };
            thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    let target = format!("unix=unix:{}@{}", path.display(), std::process::id());
    let output = short_run(&target, &["--size", "100000", "--duration", "0.05"]);
    std::fs::remove_file(&path).unwrap();
    let report = report(&output);
    assert_eq!(report["targets"][0]["errors"], 0);
    assert!(number(&report["targets"][0]["requests"]) >= 4.0);
}

#[test]
fn tls_targets_work() {
    const FILE: &[u8] = include_bytes!("../../servers/localhost.pem");
    fn serve(stream: TcpStream) {
        let chain = CertificateDer::from_pem_slice(FILE).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(FILE).expect("a key");
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .expect("they belong together");
        let session = ServerConnection::new(Arc::new(config)).expect("a valid configuration");
        let mut stream = StreamOwned::new(session, stream);
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
    }
    let address = server("127.0.0.1", serve);
    for size in ["1000", "300000"] {
        let target = format!("a=tls:{address}");
        let report = report(&short_run(&target, &["--size", size, "--duration", "0.2"]));
        let target = &report["targets"][0];
        assert!(number(&target["requests"]) >= 4.0, "{target}");
        assert_eq!(number(&target["errors"]), 0.0, "{target}");
    }
}

#[test]
fn udp_targets_work() {
    let target = format!("udp=udp:{}", datagram_server(|_| ()));
    let report = report(&short_run(&target, &["--size", "1000", "--duration", "0.05"]));
    let target = &report["targets"][0];
    assert_eq!((&target["errors"], &target["lost"]), (&0.into(), &0.into()));
    assert!(number(&target["requests"]) >= 4.0);
}

#[test]
fn lost_datagrams_are_counted_and_sent_anew() {
    let mut seen = 0;
    let server = datagram_server(move |datagram| {
        seen += 1;
        // The first of each of four connections.
        if seen <= 4 {
            datagram.clear();
        }
    });
    let rest = ["--size", "10", "--duration", "0.3"];
    let report = report(&short_run(&format!("udp=udp:{server}"), &rest));
    let target = &report["targets"][0];
    assert_eq!((&target["errors"], &target["lost"]), (&0.into(), &4.into()));
    assert!(number(&target["requests"]) >= 4.0);
}

#[test]
fn a_silent_udp_server_does_not_hold_the_run_up() {
    let server = datagram_server(Vec::clear);
    let rest = ["--size", "10", "--duration", "0.05"];
    let report = report(&short_run(&format!("mute=udp:{server}"), &rest));
    let target = &report["targets"][0];
    assert_eq!((&target["requests"], &target["lost"]), (&0.into(), &4.into()));
}

#[test]
fn a_changed_datagram_is_seen() {
    let server = datagram_server(|datagram| datagram[9] ^= 1);
    let rest = ["--size", "10", "--duration", "0.05"];
    let output = short_run(&format!("liar=udp:{server}"), &rest);
    assert!(complaint(&output).contains("byte 9 of 10 differs"));
}

#[test]
fn a_target_nobody_listens_at_is_named() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = short_run(&format!("gone={address}"), &["--size", "1", "--duration", "0.05"]);
    assert!(complaint(&output).contains("target 'gone' cannot be reached"));
}

#[test]
fn a_changed_byte_is_seen_in_the_first_reply() {
    let address = server("127.0.0.1", |stream| {
        each_chunk(stream, |before, chunk| {
            if before + chunk.len() == 2000 {
                *chunk.last_mut().unwrap() ^= 1;
            }
            true
        });
    });
    let output = short_run(&format!("liar={address}"), &["--size", "2000", "--duration", "0.05"]);
    let complaint = complaint(&output);
    assert!(complaint.contains("target 'liar'"), "{complaint}");
    assert!(complaint.contains("byte 1999 of 2000 differs"), "{complaint}");
}

#[test]
fn a_surplus_byte_is_seen() {
    let address = server("127.0.0.1", |stream| {
        each_chunk(stream, |_, chunk| {
            chunk.push(0);
            true
        });
    });
    let output = short_run(&format!("chatty={address}"), &["--size", "10", "--duration", "0.05"]);
    assert!(complaint(&output).contains("11 bytes came back for 10 sent"));
}

#[test]
fn lost_connections_are_counted_and_opened_anew() {
    let address = server("127.0.0.1", |stream| {
        each_chunk(stream, |before, chunk| before + chunk.len() < 100);
    });
    let rounds = ["--size", "10", "--rounds", "3", "--burst-ms", "2000"];
    let output = short_run(&format!("flaky={address}"), &rounds);
    let report = report(&output);
    let target = &report["targets"][0];
    // Four connections in three rounds, ten replies from each; a round ends with its connections.
    assert_eq!((&target["errors"], &target["requests"]), (&12.into(), &120.into()));
    assert!(!target["error_messages"].as_array().unwrap().is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("target 'flaky': 12 errors"));
}

#[test]
fn a_silent_server_does_not_hold_the_run_up() {
    let address = server("127.0.0.1", |stream| {
        each_chunk(stream, |_, chunk| {
            chunk.clear();
            true
        });
    });
    let output = short_run(&format!("mute={address}"), &["--size", "10", "--duration", "0.05"]);
    let report = report(&output);
    let target = &report["targets"][0];
    assert_eq!((&target["errors"], &target["requests"]), (&4.into(), &0.into()));
    assert_eq!(number(&target["requests_per_second"]), 0.0);
}

#[test]
fn a_server_that_is_silent_in_the_warm_up_is_named() {
    let address = server("127.0.0.1", |stream| {
        each_chunk(stream, |_, chunk| {
            chunk.clear();
            true
        });
    });
    let rest = ["--size", "10", "--duration", "60", "--warmup-ms", "10"];
    let output = short_run(&format!("mute={address}"), &rest);
    assert!(complaint(&output).contains("target 'mute' answered nothing"));
}

#[test]
fn a_command_line_without_sense_has_its_own_exit_code() {
    let output = load(&["--connections", "1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--target is missing"));
}

#[test]
fn a_process_that_is_not_there_is_named() {
    let target = format!("lost={}@4294967295", server("127.0.0.1", echo));
    let output = short_run(&target, &["--size", "1", "--duration", "0.05"]);
    assert!(complaint(&output).contains("process 4294967295"));
}

/// Answers HTTP requests, each of which arrives in one piece, with `reply`.
fn http_server(reply: &'static str, close: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { break };
            thread::spawn(move || {
                each_chunk(stream, |_, chunk| {
                    assert!(chunk.starts_with(b"GET /hello HTTP/1.1\r\n"));
                    *chunk = reply.into();
                    !close
                });
            });
        }
    });
    address
}

#[test]
fn http_replies_are_read_to_their_ends() {
    let plain = http_server("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", false);
    let chunked = http_server(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        false,
    );
    for address in [plain, chunked] {
        let rest = ["--get", "/hello", "--duration", "0.05"];
        let report = report(&short_run(&format!("http={address}"), &rest));
        let target = &report["targets"][0];
        assert_eq!((&target["errors"], &target["size"]), (&0.into(), &Value::Null));
        assert!(number(&target["requests"]) >= 4.0);
    }
}

#[test]
fn a_status_other_than_200_is_an_error() {
    let address = http_server("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", false);
    let rest = ["--get", "/hello", "--duration", "0.05"];
    assert!(complaint(&short_run(&format!("http={address}"), &rest)).contains("status 500"));
}

#[test]
fn each_request_can_have_its_own_connection() {
    let echo = server("127.0.0.1", |stream| each_chunk(stream, |_, _| false));
    let http = http_server("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", true);
    let echo = (format!("echo={echo}"), ["--size", "10"]);
    let http = (format!("http={http}"), ["--get", "/hello"]);
    for (target, work) in [echo, http] {
        let rest = ["--rounds", "2", "--burst-ms", "50", "--single-request"];
        let report = report(&short_run(&target, &[&work[..], &rest].concat()));
        let target = &report["targets"][0];
        assert_eq!(target["errors"], 0, "{target}");
        // More than the four connections of each round.
        assert!(number(&target["requests"]) > 8.0, "{target}");
    }
}

#[test]
fn a_connection_that_stays_open_after_its_only_request_is_an_error() {
    let rest = ["--size", "10", "--duration", "0.05", "--single-request"];
    let output = short_run(&format!("keeps={}", server("127.0.0.1", echo)), &rest);
    let report = report(&output);
    let target = &report["targets"][0];
    assert_eq!((&target["requests"], &target["errors"]), (&0.into(), &4.into()));
}

/// A server of one-way streams, as `--download` and `--upload` have them; `extra` bytes too many.
fn bulk(mut stream: TcpStream, extra: usize) {
    let mut head = [0; 16];
    while stream.read_exact(&mut head).is_ok() {
        let number = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().unwrap());
        let up = std::io::copy(&mut (&mut stream).take(number(0)), &mut std::io::sink());
        assert_eq!(up.expect("all of the upload"), number(0));
        let down = vec![0; number(8) as usize + extra];
        if stream.write_all(&down).is_err() {
            break;
        }
    }
}

#[test]
fn bulk_goes_either_way() {
    for direction in ["--download", "--upload"] {
        let target = format!("bulk={}", server("127.0.0.1", |stream| bulk(stream, 0)));
        let report = report(&short_run(&target, &[direction, "3000000", "--duration", "0.1"]));
        let target = &report["targets"][0];
        assert_eq!((&target["errors"], &target["size"]), (&0.into(), &3_000_000.into()));
        assert!(number(&target["requests"]) >= 4.0);
    }
}

#[test]
fn a_byte_too_many_of_a_download_is_seen() {
    let target = format!("bulk={}", server("127.0.0.1", |stream| bulk(stream, 1)));
    let output = short_run(&target, &["--download", "100", "--duration", "0.05"]);
    assert!(complaint(&output).contains("101 bytes came back for 100"));
}

fn paced_run(target: &str, more: &[&str]) -> Output {
    let paced = ["--target", target, "--size", "10", "--rate", "200", "--warmup-ms", "0"];
    load(&[&paced, more].concat())
}

#[test]
fn requests_begin_at_a_rate() {
    let target = format!("paced={}", server("127.0.0.1", echo));
    let rest = ["--connections", "2", "--duration", "0.5"];
    let report = report(&paced_run(&target, &rest));
    // One each 5 ms, no matter how fast the server is.
    assert_eq!(report["targets"][0]["requests"], 100);
}

#[test]
fn at_a_rate_latency_counts_from_when_a_request_was_due() {
    let address = server("127.0.0.1", |stream| {
        each_chunk(stream, |_, _| {
            thread::sleep(Duration::from_millis(20));
            true
        });
    });
    let target = format!("slow={address}");
    let rest = ["--connections", "1", "--duration", "0.1"];
    let report = report(&paced_run(&target, &rest));
    let target = &report["targets"][0];
    // Twenty are due within 100 ms, and one connection needs 400 ms for them.
    assert_eq!(target["requests"], 20);
    assert!(number(&target["latency_us"]["max"]) >= 300_000.0, "{target}");
    assert!(number(&target["seconds"]) >= 0.4);
}

#[test]
fn processor_time_of_several_processes_is_summed() {
    let mut other = Command::new("sleep").arg("60").spawn().expect("sleep(1)");
    let pids = format!("{}+{}", std::process::id(), other.id());
    let target = format!("both={}@{pids}", server("127.0.0.1", echo));
    let output = short_run(&target, &["--size", "10", "--duration", "0.05"]);
    other.kill().expect("it runs");
    other.wait().expect("it is ours");
    assert!(number(&report(&output)["targets"][0]["server_cpu_us_per_request"]) > 0.0);
}

#[test]
fn held_connections_stay_open_until_input_ends() {
    let (closed, all_closed) = mpsc::channel();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = format!("held={}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { break };
            let closed = closed.clone();
            thread::spawn(move || {
                echo(stream);
                closed.send(()).unwrap();
            });
        }
    });
    let mut client = Command::new(env!("CARGO_BIN_EXE_kloop-load"))
        .args(["--target", &target, "--connections", "250", "--size", "10", "--hold"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the command runs");
    let mut said = String::new();
    let mut output = BufReader::new(client.stdout.take().unwrap());
    output.read_line(&mut said).expect("a line");
    assert_eq!(said, "HOLDS 250\n");
    assert_eq!(all_closed.try_recv(), Err(TryRecvError::Empty));
    drop(client.stdin.take());
    assert!(client.wait().expect("it is ours").success());
    for _ in 0..250 {
        all_closed.recv_timeout(Duration::from_secs(10)).expect("all are closed");
    }
}

#[test]
fn more_connections_than_open_files_are_refused_in_words() {
    let target = format!("many={}", server("127.0.0.1", echo));
    let rest = ["--connections", "4000000000", "--size", "1", "--hold"];
    let output = load(&[&["--target", &target], rest.as_slice()].concat());
    assert!(complaint(&output).contains("open files are needed"));
}
