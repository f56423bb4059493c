//! The result of a run, as it is written to standard output.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// One run.
#[derive(Debug, Serialize)]
pub struct Report {
    pub rounds: usize,
    pub burst_ms: u128,
    pub targets: Vec<TargetReport>,
}

/// All visits to one target.
#[derive(Debug, Serialize)]
pub struct TargetReport {
    pub name: String,
    pub requests: u64,
    /// Exchanges without a reply on sockets that may lose it: UDP.
    pub lost: u64,
    pub errors: u64,
    /// The first few errors, in words.
    pub error_messages: Vec<String>,
    pub seconds: f64,
    pub requests_per_second: f64,
    pub latency_us: Latency,
    /// Absent where the server's process is not known.
    pub server_cpu_us_per_request: Option<f64>,
    pub client_cpu_us_per_request: f64,
    pub connections: usize,
    /// Bytes of payload of a request; absent for HTTP.
    pub size: Option<usize>,
    pub rounds: Vec<Round>,
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// One visit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Round {
    pub requests: u64,
    pub seconds: f64,
    pub server_cpu_us: Option<f64>,
    pub client_cpu_us: f64,
}

impl Latency {
    /// The quantiles of latencies in nanoseconds.
    pub fn of(nanoseconds: &Histogram<u64>) -> Self {
        let microseconds = |value: u64| value as f64 / 1e3;
        Self {
            p50: microseconds(nanoseconds.value_at_quantile(0.5)),
            p99: microseconds(nanoseconds.value_at_quantile(0.99)),
            max: microseconds(nanoseconds.max()),
        }
    }
}

/// The sums over all visits to a target: requests, seconds, and the processor time of server and
/// client in microseconds for each request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Totals {
    pub requests: u64,
    pub seconds: f64,
    pub requests_per_second: f64,
    pub server_cpu_us_per_request: Option<f64>,
    pub client_cpu_us_per_request: f64,
}

impl Totals {
    pub fn of(rounds: &[Round]) -> Self {
        let requests: u64 = rounds.iter().map(|round| round.requests).sum();
        let seconds: f64 = rounds.iter().map(|round| round.seconds).sum();
        let server: Option<f64> = rounds.iter().map(|round| round.server_cpu_us).sum();
        let client: f64 = rounds.iter().map(|round| round.client_cpu_us).sum();
        Self {
            requests,
            seconds,
            requests_per_second: ratio(requests as f64, seconds),
            server_cpu_us_per_request: server.map(|cpu| ratio(cpu, requests as f64)),
            client_cpu_us_per_request: ratio(client, requests as f64),
        }
    }
}

/// A duration in microseconds.
pub fn microseconds(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

/// Zero where there is nothing to divide by, for JSON knows no infinity.
fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator > 0.0 { numerator / denominator } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(requests: u64, server_cpu_us: Option<f64>) -> Round {
        Round { requests, seconds: 0.5, server_cpu_us, client_cpu_us: 200.0 }
    }

    #[test]
    fn totals_add_up() {
        let totals = Totals::of(&[round(100, Some(500.0)), round(300, Some(1500.0))]);
        assert_eq!(totals.requests, 400);
        assert_eq!(totals.requests_per_second, 400.0);
        assert_eq!(totals.server_cpu_us_per_request, Some(5.0));
        assert_eq!(totals.client_cpu_us_per_request, 1.0);
    }

    #[test]
    fn an_unknown_server_has_no_figure() {
        let totals = Totals::of(&[round(1, None), round(1, Some(1.0))]);
        assert_eq!(totals.server_cpu_us_per_request, None);
    }

    #[test]
    fn no_requests_at_all_still_make_json() {
        let totals = Totals::of(&[]);
        assert_eq!(totals.requests_per_second, 0.0);
        assert_eq!(totals.client_cpu_us_per_request, 0.0);
    }
}
