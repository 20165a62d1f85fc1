//! A Kafka and a Cassandra that may be killed: nobody else uses them. A proxy stands before each, and each has a disk that
//! can be full. One test has them at a time.

use backstamp_tests::deployment::Addresses;
use backstamp_tests::full_disk::FullDisk;
use backstamp_tests::proxy::Proxy;
use backstamp_tests::servers::{Cassandra, Extras, Kafka, Profile};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// The commit log is written as it is acknowledged, not mapped: so a full disk shows.
const COMMIT_LOG: &str = "commitlog_compression: [{class_name: LZ4Compressor}]";

pub(super) struct OwnServers {
    pub(super) kafka: Kafka,
    pub(super) kafka_proxy: Proxy,
    pub(super) kafka_disk: FullDisk,
    pub(super) cassandra: Cassandra,
    pub(super) cassandra_proxy: Proxy,
    pub(super) cassandra_disk: FullDisk,
}

impl OwnServers {
    /// The servers, both up and with room, and proxies that behave.
    pub(super) async fn take() -> MutexGuard<'static, OwnServers> {
        static SERVERS: OnceCell<Mutex<OwnServers>> = OnceCell::const_new();
        let servers = SERVERS.get_or_init(async || Mutex::new(OwnServers::start().await)).await;
        let mut servers = servers.lock().await;
        // A test that failed may have left them anyhow.
        for proxy in [&servers.kafka_proxy, &servers.cassandra_proxy] {
            proxy.behave();
        }
        servers.kafka_disk.clear();
        servers.cassandra_disk.clear();
        let OwnServers { kafka, cassandra, .. } = &mut *servers;
        for node in [kafka.node(), cassandra.node()] {
            if node.has_ended() {
                node.start_again().await;
            }
            node.cont();
        }
        servers
    }

    async fn start() -> OwnServers {
        let (kafka_proxy, cassandra_proxy) = (Proxy::start(), Proxy::start());
        let (kafka_disk, cassandra_disk) = (FullDisk::new(), FullDisk::new());
        let kafka_extras = Extras {
            environment: kafka_disk.environment(),
            advertised_port: Some(kafka_proxy.port()),
            ..Extras::default()
        };
        let cassandra_extras = Extras {
            environment: cassandra_disk.environment(),
            settings: COMMIT_LOG.to_owned(),
            ..Extras::default()
        };
        let kafka = tokio::task::spawn_blocking(move || Kafka::start_with(Profile::Tests, &kafka_extras));
        let cassandra =
            tokio::task::spawn_blocking(move || Cassandra::start_with(Profile::Tests, &cassandra_extras));
        let (kafka, cassandra) = (kafka.await.unwrap().unwrap(), cassandra.await.unwrap().unwrap());
        kafka_proxy.lead_to(&kafka.second_bootstrap);
        cassandra_proxy.lead_to(&cassandra.contact);
        OwnServers { kafka, kafka_proxy, kafka_disk, cassandra, cassandra_proxy, cassandra_disk }
    }

    /// Where they are, for the program as well.
    pub(super) fn addresses(&self) -> Addresses {
        Addresses::direct(&self.kafka.bootstrap, &self.cassandra.contact)
    }

    /// Where they are; the program comes through both proxies.
    pub(super) fn addresses_behind_proxies(&self) -> Addresses {
        Addresses {
            kafka_of_program: self.kafka_proxy.address(),
            store_of_program: self.cassandra_proxy.address(),
            ..self.addresses()
        }
    }
}
