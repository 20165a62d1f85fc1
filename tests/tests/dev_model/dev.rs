//! A `backstamp dev` on data that outlives it.

use std::path::PathBuf;

use backstamp_tests::client::Client;
use backstamp_tests::program::{Program, Running};
use backstamp_tests::scratch;

/// A running `dev`.
pub(super) struct Dev {
    data: PathBuf,
    running: Running,
    client: Client,
}

impl Dev {
    /// Starts one on an empty directory.
    pub(super) async fn start() -> Dev {
        Dev::on(scratch::directory("dev")).await
    }

    /// Kills it as a power cut would, and starts another one on the same data. It has another address.
    pub(super) async fn kill9_and_restart(self) -> Dev {
        self.running.kill9();
        Dev::on(self.data.clone()).await
    }

    async fn on(data: PathBuf) -> Dev {
        let directory = data.to_str().expect("a directory of ASCII");
        let environment = [("BACKSTAMP_DATA", directory), ("BACKSTAMP_RATE_LIMIT", "off")];
        let running = Program::start(&["dev"], &environment).await;
        let client = Client::new(running.url()).expect("a client");
        Dev { data, running, client }
    }

    /// A client of it.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// What tells `keys` where it is.
    pub(super) fn environment(&self) -> [(&'static str, &str); 2] {
        let data = self.data.to_str().expect("a directory of ASCII");
        [("BACKSTAMP_OPS_LISTEN", self.running.ops_address()), ("BACKSTAMP_DATA", data)]
    }
}
