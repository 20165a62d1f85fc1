//! Clients that mean harm, against a `dev`: slow ones, oversized and deep bodies, requests at odds with themselves, and keys that
//! pry into other accounts.
//!
//! The quick form is what `cargo test` runs. `BACKSTAMP_HOSTILE=all` asks for everything: 2,000 connections, 10,000 pairs, and
//! times that are judged. It wants a release build and a machine that has nothing else to do:
//!
//! ```text
//! BACKSTAMP_HOSTILE=all cargo test --release -p backstamp-tests --test hostile -- --test-threads 1 --nocapture
//! ```

mod hostile {
    mod bodies;
    mod connections;
    mod framing;
    mod tenants;
    mod wire;

    use backstamp_tests::program::Running;
    use backstamp_tests::stack::Stack;

    /// Whether everything is asked for.
    fn is_full() -> bool {
        match std::env::var("BACKSTAMP_HOSTILE").as_deref() {
            Ok("all") => true,
            Err(_) | Ok("") => false,
            Ok(other) => panic!("BACKSTAMP_HOSTILE is all or not set, and not {other}"),
        }
    }

    /// A `dev` without a rate limit.
    async fn unlimited() -> Stack {
        Stack::dev_with(&[("BACKSTAMP_RATE_LIMIT", "off")]).await
    }

    /// The one process of a dev.
    fn process(stack: &Stack) -> &Running {
        stack.services()[0].1
    }

    /// How many bytes of memory a process has.
    fn memory(process: &Running) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it says so");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }
}
