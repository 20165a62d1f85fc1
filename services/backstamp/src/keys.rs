//! `backstamp keys`: makes, lists and revokes API keys — in Scylla where its nodes are named, else in the running `dev`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use edge::Clock;
use event_store::EventStore;
use event_store::scylla::ScyllaStore;
use rand::Rng;
use serde::{Deserialize, Serialize};
use timeline::AccountId;
use timeline::key::{KEY_RANDOM_BYTES, KeyRecord, Permission, digest_key, format_key, key_id};

use crate::admin;
use crate::options::{ScyllaOptions, parse_span};
use crate::run::system_clock;

/// Makes, lists and revokes API keys: in Scylla where BACKSTAMP_SCYLLA_NODES (or --scylla-nodes) is set, else in the dev that is running.
#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Command,
    /// Nodes of Scylla; without them the keys are those of the running dev.
    #[arg(long, env = "BACKSTAMP_SCYLLA_NODES", value_delimiter = ',', global = true)]
    scylla_nodes: Option<Vec<String>>,
    /// The keyspace of the tables.
    #[arg(long, env = "BACKSTAMP_KEYSPACE", default_value = "backstamp", global = true)]
    keyspace: String,
    /// The user, where the cluster asks for one.
    #[arg(long, env = "BACKSTAMP_SCYLLA_USER", global = true)]
    scylla_user: Option<String>,
    /// The user's password; better given by the environment.
    #[arg(long, env = "BACKSTAMP_SCYLLA_PASSWORD", hide_env_values = true, global = true)]
    scylla_password: Option<String>,
    /// A PEM file of the authorities that sign the nodes' certificates.
    #[arg(long, env = "BACKSTAMP_SCYLLA_CA", global = true)]
    scylla_ca: Option<PathBuf>,
    /// Where the running dev serves /metrics.
    #[arg(long, env = "BACKSTAMP_OPS_LISTEN", default_value = "127.0.0.1:9464", global = true)]
    ops_listen: SocketAddr,
    /// The running dev's data: holds the token that lets its owner manage keys.
    #[arg(long, env = "BACKSTAMP_DATA", default_value = "./backstamp-data", global = true)]
    data: PathBuf,
    /// Prints JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Prints a new key, once: only its SHA-256 is kept.
    Create(CreateOptions),
    /// Lists keys by their ids, never themselves.
    List,
    /// Revokes a key; it stops working within 30 s.
    Revoke {
        /// Its id, as `keys list` shows it.
        id: String,
    },
}

#[derive(Args)]
struct CreateOptions {
    /// Whose data the key opens.
    #[arg(long, value_parser = parse_account)]
    account: AccountId,
    /// What it may do: campaigns:read contacts:read events:write references:write.
    #[arg(long = "permission", required = true, num_args = 1.., value_delimiter = ',', value_parser = parse_permission)]
    permissions: Vec<Permission>,
    /// When it stops working: 90d, 12h, 30m; by default never.
    #[arg(long, value_parser = parse_span)]
    expires: Option<Duration>,
}

/// What makes a key.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NewKey {
    pub(crate) account: String,
    pub(crate) permissions: Vec<String>,
    pub(crate) expires_s: Option<u64>,
}

/// A key as it is shown; `key` itself only where it was just made.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ShownKey {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<String>,
    pub(crate) id: String,
    pub(crate) account: String,
    pub(crate) permissions: Vec<String>,
    pub(crate) created_at: String,
    pub(crate) expires_at: Option<String>,
    pub(crate) revoked_at: Option<String>,
}

/// Keys where they are: in a store.
#[derive(Clone)]
pub(crate) struct KeyStore {
    store: Arc<dyn EventStore>,
    clock: Clock,
}

impl KeyStore {
    pub(crate) fn new(store: Arc<dyn EventStore>, clock: Clock) -> KeyStore {
        KeyStore { store, clock }
    }

    pub(crate) async fn create(&self, new: &NewKey) -> anyhow::Result<ShownKey> {
        let account = parse_account(&new.account).map_err(anyhow::Error::msg)?;
        let mut permissions: Vec<Permission> = new
            .permissions
            .iter()
            .map(|name| parse_permission(name))
            .collect::<Result<_, _>>()
            .map_err(anyhow::Error::msg)?;
        permissions.sort_unstable();
        permissions.dedup();
        let mut random = [0; KEY_RANDOM_BYTES];
        rand::rng().fill_bytes(&mut random);
        let key = format_key(&random);
        let digest = digest_key(&key).context("a new key is a key")?;
        let now = (self.clock)();
        let expires_at = new
            .expires_s
            .map(|span| now.plus_ms(i64::try_from(span).unwrap_or(i64::MAX).saturating_mul(1000)));
        let record = KeyRecord {
            id: key_id(&digest),
            digest,
            account,
            permissions,
            created_at: now,
            expires_at,
            revoked_at: None,
        };
        self.store.write_key(&record).await?;
        Ok(ShownKey { key: Some(key), ..ShownKey::from(record) })
    }

    pub(crate) async fn list(&self) -> anyhow::Result<Vec<ShownKey>> {
        let mut keys = self.store.list_keys().await?;
        keys.sort_by(|one, next| {
            (&one.account, one.created_at, &one.id).cmp(&(&next.account, next.created_at, &next.id))
        });
        Ok(keys.into_iter().map(ShownKey::from).collect())
    }

    /// Revokes a key; `None` where there is no such key.
    pub(crate) async fn revoke(&self, id: &str) -> anyhow::Result<Option<ShownKey>> {
        let Some(mut record) = self.store.read_key(id).await? else { return Ok(None) };
        if record.revoked_at.is_none() {
            record.revoked_at = Some((self.clock)());
            self.store.write_key(&record).await?;
        }
        Ok(Some(ShownKey::from(record)))
    }
}

impl From<KeyRecord> for ShownKey {
    fn from(record: KeyRecord) -> ShownKey {
        ShownKey {
            key: None,
            id: record.id,
            account: record.account.to_string(),
            permissions: record.permissions.iter().map(|permission| permission.name().to_owned()).collect(),
            created_at: record.created_at.to_rfc3339(),
            expires_at: record.expires_at.map(timeline::Timestamp::to_rfc3339),
            revoked_at: record.revoked_at.map(timeline::Timestamp::to_rfc3339),
        }
    }
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what a person or a script wants to read")]
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let keys = Keys::open(&options).await?;
    match &options.command {
        Command::Create(create) => {
            let made = keys.create(create).await?;
            if options.json {
                println!("{}", serde_json::to_string(&made)?);
            } else {
                println!("{}", made.key.as_deref().unwrap_or_default());
                let expires =
                    made.expires_at.map_or_else(|| "never expires".to_owned(), |at| format!("expires {at}"));
                eprintln!(
                    "key {} of {}: {}; {expires}. It is not shown again.",
                    made.id,
                    made.account,
                    made.permissions.join(" ")
                );
            }
        }
        Command::List => {
            let list = keys.list().await?;
            if options.json {
                println!("{}", serde_json::to_string(&list)?);
            } else {
                for key in list {
                    let state = match (&key.revoked_at, &key.expires_at) {
                        (Some(at), _) => format!("revoked {at}"),
                        (None, Some(at)) => format!("expires {at}"),
                        (None, None) => "never expires".to_owned(),
                    };
                    println!(
                        "{}  {}  {}  created {}  {state}",
                        key.id,
                        key.account,
                        key.permissions.join(" "),
                        key.created_at
                    );
                }
            }
        }
        Command::Revoke { id } => match keys.revoke(id).await? {
            Some(revoked) if options.json => println!("{}", serde_json::to_string(&revoked)?),
            Some(revoked) => {
                println!("revoked {} of {}: it stops working within 30 s", revoked.id, revoked.account);
            }
            None => bail!("no key has the id '{id}': `backstamp keys list` shows the ids"),
        },
    }
    Ok(())
}

/// Where the keys are.
enum Keys {
    Scylla(KeyStore),
    Dev(admin::Client),
}

impl Keys {
    async fn open(options: &Options) -> anyhow::Result<Keys> {
        match options.scylla_nodes.clone().filter(|nodes| nodes.iter().any(|node| !node.is_empty())) {
            Some(scylla_nodes) => {
                let scylla = ScyllaOptions {
                    scylla_nodes,
                    keyspace: options.keyspace.clone(),
                    scylla_user: options.scylla_user.clone(),
                    scylla_password: options.scylla_password.clone(),
                    scylla_ca: options.scylla_ca.clone(),
                    scylla_datacenter: None,
                };
                let store = ScyllaStore::connect(&scylla.config()).await?;
                store.check().await?;
                Ok(Keys::Scylla(KeyStore::new(Arc::new(store), system_clock())))
            }
            None => Ok(Keys::Dev(admin::Client::open(options.ops_listen, &options.data)?)),
        }
    }

    async fn create(&self, create: &CreateOptions) -> anyhow::Result<ShownKey> {
        let new = NewKey {
            account: create.account.to_string(),
            permissions: create.permissions.iter().map(|permission| permission.name().to_owned()).collect(),
            expires_s: create.expires.map(|span| span.as_secs()),
        };
        match self {
            Keys::Scylla(store) => store.create(&new).await,
            Keys::Dev(client) => client.create(&new).await,
        }
    }

    async fn list(&self) -> anyhow::Result<Vec<ShownKey>> {
        match self {
            Keys::Scylla(store) => store.list().await,
            Keys::Dev(client) => client.list().await,
        }
    }

    async fn revoke(&self, id: &str) -> anyhow::Result<Option<ShownKey>> {
        match self {
            Keys::Scylla(store) => store.revoke(id).await,
            Keys::Dev(client) => client.revoke(id).await,
        }
    }
}

/// The file in a dev's data directory that lets its owner manage keys.
pub(crate) fn token_path(data: &Path) -> PathBuf {
    data.join("ops-token")
}

pub(crate) fn parse_account(text: &str) -> Result<AccountId, String> {
    AccountId::parse(text)
        .ok_or_else(|| format!("'{text}' is no account id: expected {}", AccountId::EXPECTED))
}

fn parse_permission(text: &str) -> Result<Permission, String> {
    Permission::parse(text).ok_or_else(|| {
        let all: Vec<&str> = Permission::ALL.iter().map(|permission| permission.name()).collect();
        format!("'{text}' is no permission: expected {}", all.join(", "))
    })
}
