//! A Prometheus that scrapes services under test.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::debian::{PROMETHEUS, tool};
use crate::scratch;
use crate::servers::server::{self, Server};

const TIMEOUT: Duration = Duration::from_secs(30);

/// What is scraped: the name of a job and the ops addresses of its processes, `127.0.0.1:PORT`.
pub type Jobs<'a> = [(&'a str, Vec<String>)];

/// A running Prometheus. It ends when dropped.
pub struct Prometheus {
    url: String,
    http: reqwest::Client,
    _server: Server,
}

impl Prometheus {
    /// Starts one that scrapes `jobs` every second and works by `rules`, the text of a file of rules. Blocks until it is ready.
    ///
    /// # Panics
    ///
    /// When it does not start: with what is missing or what its log says.
    pub fn start(jobs: &Jobs<'_>, rules: &str) -> Prometheus {
        Self::try_start(jobs, rules).unwrap_or_else(|error| panic!("Prometheus does not start: {error:#}"))
    }

    fn try_start(jobs: &Jobs<'_>, rules: &str) -> Result<Prometheus> {
        let directory = scratch::directory("prometheus");
        fs::write(directory.join("rules.yaml"), rules)?;
        let mut settings = "global: { scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }\n\
                            rule_files: [rules.yaml]\nscrape_configs:\n"
            .to_owned();
        for (job, targets) in jobs {
            settings += &format!(
                "  - job_name: {job}\n    static_configs: [{{ targets: {} }}]\n",
                serde_json::to_string(targets)?
            );
        }
        fs::write(directory.join("prometheus.yaml"), settings)?;
        let program = tool(PROMETHEUS, "prometheus");
        let (port, server) = server::on_free_ports(|[port]| {
            let mut command = program.command();
            command
                .arg(format!("--config.file={}", directory.join("prometheus.yaml").display()))
                .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
                .arg(format!("--web.listen-address=127.0.0.1:{port}"))
                .arg("--log.level=warn");
            let log = directory.join("prometheus.log");
            Ok((port, server::start(command, &log, || server::accepts(port))?))
        })?;
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        Ok(Prometheus { url: format!("http://127.0.0.1:{port}"), http, _server: server })
    }

    /// The samples that a query has now: labels and value.
    ///
    /// # Errors
    ///
    /// When it is refused: with what Prometheus said.
    pub async fn query(&self, query: &str) -> Result<Vec<(Value, f64)>> {
        let data = self.ask("query", &[("query", query)]).await?;
        let samples = data["result"].as_array().context("an instant vector")?;
        samples.iter().map(|sample| Ok((sample["metric"].clone(), number(&sample["value"][1])?))).collect()
    }

    /// The series that a query has over the last `seconds`, a point each of them: labels, and instants with values.
    ///
    /// # Errors
    ///
    /// When it is refused: with what Prometheus said.
    pub async fn query_range(&self, query: &str, seconds: i64) -> Result<Vec<(Value, Vec<(f64, f64)>)>> {
        let now = chrono::Utc::now().timestamp();
        let (from, to) = ((now - seconds).to_string(), now.to_string());
        let asked = [("query", query), ("start", &from), ("end", &to), ("step", "1")];
        let data = self.ask("query_range", &asked).await?;
        let series = data["result"].as_array().context("a matrix")?;
        series
            .iter()
            .map(|series| {
                let points = series["values"].as_array().context("values")?.iter();
                let points =
                    points.map(|point| Ok((point[0].as_f64().context("an instant")?, number(&point[1])?)));
                Ok((series["metric"].clone(), points.collect::<Result<_>>()?))
            })
            .collect()
    }

    /// The names of the alerts that fire. Those over three days are left out: a test machine is slow all the time.
    ///
    /// # Errors
    ///
    /// When Prometheus does not answer.
    pub async fn firing(&self) -> Result<Vec<String>> {
        let data = self.ask("alerts", &[]).await?;
        let alerts = data["alerts"].as_array().context("alerts")?.iter();
        let firing = alerts.filter(|alert| alert["state"] == "firing" && alert["labels"]["window"] != "3d");
        Ok(firing.filter_map(|alert| alert["labels"]["alertname"].as_str().map(str::to_owned)).collect())
    }

    async fn ask(&self, what: &str, query: &[(&str, &str)]) -> Result<Value> {
        let request = self.http.get(format!("{}/api/v1/{what}", self.url)).query(query);
        let answer: Value = request.send().await?.json().await?;
        ensure!(answer["status"] == "success", "{}", answer["error"]);
        Ok(answer["data"].clone())
    }
}

/// A number as Prometheus writes it: `NaN` and `+Inf` are some.
fn number(value: &Value) -> Result<f64> {
    Ok(value.as_str().context("a value")?.replace("+Inf", "inf").parse()?)
}

/// A file of the repository.
///
/// # Panics
///
/// When it cannot be read.
pub fn repository_file(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("");
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}
