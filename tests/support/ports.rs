//! Hands out loopback ports that nothing listens on.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{LazyLock, Mutex, PoisonError};

/// Holds the ports that were given away, until the process ends: an abstract socket for each says so to test runs beside
/// this one, also while the service that has the port is down for a restart.
static GIVEN: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// A port of 127.0.0.1 that is free now and that no test run has given to anyone.
///
/// The port lies below the range that the kernel takes source ports from. A port out of that range (what `bind(0)` gives)
/// goes wrong for a service that restarts: while it is down, some connection may get its port as a source port, and
/// a client that keeps trying to reconnect may even connect to itself.
pub fn free_port() -> u16 {
    listen_on_free_port().local_addr().expect("a bound socket has an address").port()
}

/// Returns the port bound. Prefer the socket to its number: a process that another thread forks holds a copy of it until it
/// executes its program, so that the port may still be taken for a moment after the socket was closed.
pub fn listen_on_free_port() -> TcpListener {
    let (low, high) = candidates();
    let span = u32::from(high - low);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Starting points differ between processes, so that test runs side by side seldom meet.
    let start = start_seed().wrapping_add(given.len() as u32) % span;
    for step in 0..span {
        let port = low + ((start + step) % span) as u16;
        let Ok(claim) = claim(port) else { continue };
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            given.push(claim);
            return listener;
        }
    }
    panic!("no free port on 127.0.0.1 between {low} and {high}");
}

fn claim(port: u16) -> std::io::Result<UnixListener> {
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(format!("chainwriter-port-{port}"))?)
}

fn candidates() -> (u16, u16) {
    let first_source_port = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(32_768);
    if first_source_port >= 12_000 { (10_000, first_source_port) } else { (10_000, 60_000) }
}

fn start_seed() -> u32 {
    static SEED: LazyLock<u32> = LazyLock::new(|| {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        std::process::id().wrapping_mul(2_654_435_761) ^ since_epoch.map_or(0, |time| time.subsec_nanos())
    });
    *SEED
}
