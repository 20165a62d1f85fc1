//! Starts Cassandra: one node.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use scylla::client::session_builder::SessionBuilder;

use super::java::Java;
use super::server::{self, Node, Recipe};
use super::{Cassandra, Extras, Profile, jars};
use crate::{scratch, unique_name};

const POM: &str = include_str!("../../servers/cassandra.pom.xml");
const SETTINGS: &str = include_str!("../../servers/cassandra.yaml");
const LOG_SETTINGS: &str = include_str!("../../servers/logback.xml");

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts a node with no data.
pub(super) fn start(profile: Profile, extras: &Extras) -> Result<Cassandra> {
    let java = Java::find()?;
    let jars = jars::fetch("cassandra", POM)?;
    server::on_free_ports(|[port, storage_port]| {
        let directory = scratch::directory("cassandra");
        let cluster = unique_name("tests");
        let settings = server::write_settings(
            &directory.join("cassandra.yaml"),
            &format!("{SETTINGS}\n{}\n", extras.settings),
            &[
                ("@CLUSTER@", &cluster),
                ("@DIR@", &directory.display().to_string()),
                ("@CQL_PORT@", &port.to_string()),
                ("@STORAGE_PORT@", &storage_port.to_string()),
                ("@PROFILE@", profile_settings(profile)),
            ],
        )?;
        fs::write(directory.join("logback.xml"), LOG_SETTINGS)?;

        let classpath = format!("{}:{}/*", directory.display(), jars.display());
        let log = directory.join("server.log");
        let command = {
            let (java, extras) = (java.clone(), extras.clone());
            move || {
                let mut node = java.command(profile, &directory, &classpath);
                node.envs(extras.environment.iter().cloned());
                match profile {
                    Profile::Tests => node.args(["-Xms256m", "-Xmx1g"]),
                    Profile::Benchmark => node.args(["-Xms2g", "-Xmx2g"]).args(COLLECTOR),
                };
                node.arg("-Djava.security.manager=allow");
                node.args(EXPORTED.map(|package| format!("--add-exports={package}=ALL-UNNAMED")));
                node.args(OPENED.map(|package| format!("--add-opens={package}=ALL-UNNAMED")));
                node.arg(format!("-Djna.tmpdir={}", directory.display()));
                node.arg(format!("-Dcassandra.storagedir={}", directory.display()));
                node.arg(format!("-Dcassandra.config=file://{}", settings.display()));
                node.args(["-Dcassandra-foreground=yes", "-Dcassandra.skip_wait_for_gossip_to_settle=0"]);
                node.args(["-Dcassandra.ring_delay_ms=0", "org.apache.cassandra.service.CassandraDaemon"]);
                node
            }
        };
        let contact = format!("127.0.0.1:{port}");
        let answers = {
            let contact = contact.clone();
            move || server::accepts(port) && answers(&contact, &cluster)
        };
        let node = Node::start(log, Recipe { command: Box::new(command), answers: Box::new(answers) })?;
        Ok(Cassandra { contact, node: Some(node) })
    })
}

/// The part of the settings that depends on what the node is for.
fn profile_settings(profile: Profile) -> &'static str {
    match profile {
        // A write is acknowledged once it is on disk: a killed node loses nothing that it acknowledged.
        Profile::Tests => "commitlog_sync: batch\ncommitlog_segment_size: 8MiB",
        // Cassandra's own, but that compaction is not held back: what it puts off would be somebody else's to pay. One at a time:
        // two leave nothing of two cores to those who write.
        Profile::Benchmark => {
            "commitlog_sync: periodic\ncommitlog_sync_period: 10000ms\ncompaction_throughput: 0MiB/s\nconcurrent_compactors: 1"
        }
    }
}

/// Whether CQL is answered, and by this node, not by one that took the port before it.
fn answers(contact: &str, cluster: &str) -> bool {
    let name = async {
        let session = SessionBuilder::new().known_node(contact).connection_timeout(ANSWER_TIMEOUT);
        let session = Box::pin(session.build()).await.ok()?;
        let rows = session.query_unpaged("SELECT cluster_name FROM system.local", ()).await.ok()?;
        let (name,) = rows.into_rows_result().ok()?.single_row::<(String,)>().ok()?;
        Some(name)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.is_ok_and(|runtime| runtime.block_on(name).as_deref() == Some(cluster))
}

/// How Cassandra's own start script sets up the collector.
const COLLECTOR: [&str; 6] = [
    "-XX:+UseG1GC",
    "-XX:+ParallelRefProcEnabled",
    "-XX:MaxTenuringThreshold=1",
    "-XX:G1RSetUpdatingPauseTimePercent=5",
    "-XX:MaxGCPauseMillis=300",
    "-XX:InitiatingHeapOccupancyPercent=70",
];

/// What Cassandra needs of Java's insides; its own start script lists the same.
const EXPORTED: [&str; 9] = [
    "java.base/java.lang.ref",
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.sql/java.sql",
    "jdk.unsupported/sun.misc",
];

/// The same, for reflection.
const OPENED: [&str; 18] = [
    "java.base/java.io",
    "java.base/java.lang",
    "java.base/java.lang.module",
    "java.base/java.lang.reflect",
    "java.base/java.net",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.util.jar",
    "java.base/sun.nio.ch",
    "jdk.management/com.sun.management.internal",
];
