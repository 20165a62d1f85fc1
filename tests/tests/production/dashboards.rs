//! Every query of every dashboard, on a real Prometheus that scrapes the real services under load.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use backstamp_tests::debian::{PROMETHEUS, tool};
use backstamp_tests::eventually;
use backstamp_tests::prometheus::{Prometheus, repository_file};
use backstamp_tests::stack::Stack;
use serde_json::Value;

use super::{load, pictures};

/// Long enough for what has to happen a few times, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(240);
/// Where pictures of the panels are put, if anywhere.
const PICTURES: &str = "BACKSTAMP_PICTURES";

/// A panel and its queries, with what Grafana would put in them.
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) unit: String,
    /// Query and how its series are called.
    pub(super) queries: Vec<(String, String)>,
}

/// The name of a dashboard's file, its title, and its panels.
fn dashboards() -> Vec<(String, String, Vec<Panel>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy/grafana/dashboards");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 4);
    let read = |file: std::path::PathBuf| {
        let board: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let panels = board["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let panels = panels.map(|panel| Panel {
            title: text(&panel["title"]),
            unit: text(&panel["fieldConfig"]["defaults"]["unit"]),
            queries: panel["targets"]
                .as_array()
                .unwrap()
                .iter()
                .map(|target| {
                    (text(&target["expr"]).replace("$__rate_interval", "15s"), text(&target["legendFormat"]))
                })
                .collect(),
        });
        (file.file_stem().unwrap().to_string_lossy().into_owned(), text(&board["title"]), panels.collect())
    };
    files.into_iter().map(read).collect()
}

#[tokio::test]
async fn every_query_of_every_dashboard_returns_data() {
    let stack = Stack::real_with(&[("BACKSTAMP_RATE_LIMIT", "off")]).await;
    let account = stack.account().await;
    let services = stack.services();
    let names: Vec<String> = services.iter().map(|(name, _)| format!("backstamp-{name}")).collect();
    let jobs = services.iter().zip(&names);
    let jobs: Vec<(&str, Vec<String>)> =
        jobs.map(|((_, running), name)| (name.as_str(), vec![running.ops_address().to_owned()])).collect();
    let rules = repository_file("deploy/prometheus/rules.yaml").replace("interval: 15s", "interval: 1s");
    let prometheus = Prometheus::start(&jobs, &rules);
    let boards = dashboards();
    let asked = async {
        for (_, board, panels) in &boards {
            for (title, (query, _)) in
                panels.iter().flat_map(|panel| panel.queries.iter().map(|query| (&panel.title, query)))
            {
                eventually(PATIENCE, async || {
                    let samples = prometheus.query(query).await?;
                    let is_known = samples.iter().any(|(_, value)| !value.is_nan());
                    ensure!(is_known, "{board}, {title}: no data for {query}: {samples:?}");
                    Ok(())
                })
                .await;
            }
        }
        if let Some(folder) = std::env::var_os(PICTURES) {
            // A line wants some past.
            eventually(PATIENCE, async || {
                let scraped = prometheus.query("min(count_over_time(up[2m]))").await?;
                ensure!(scraped.iter().any(|(_, scrapes)| *scrapes >= 90.0), "only {scraped:?} scrapes");
                Ok(())
            })
            .await;
            for (file, board, panels) in &boards {
                let picture = pictures::draw(board, panels, &prometheus).await;
                fs::write(Path::new(&folder).join(format!("{file}.svg")), picture).unwrap();
            }
        }
    };
    tokio::select! {
        () = load::run(&stack, &account) => unreachable!("it has no end"),
        () = asked => {}
    }
}

/// Names of metrics in a query or a rule that are not in the program's list of metrics are mistyped.
#[test]
fn dashboards_and_rules_use_metrics_that_there_are() {
    let declared = repository_file("services/telemetry/src/metrics.rs");
    let mut texts: Vec<String> = dashboards()
        .into_iter()
        .flat_map(|(_, _, panels)| panels.into_iter().flat_map(|panel| panel.queries))
        .map(|(query, _)| query)
        .collect();
    texts.push(repository_file("deploy/prometheus/rules.yaml"));
    for text in &texts {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("backstamp_")) {
            let name = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
            let is_there = |name: &str| declared.contains(&format!("\"{name}\""));
            assert!(is_there(word) || name.is_some_and(is_there), "{word} is no metric: {text}");
        }
    }
}

#[test]
fn promtool_finds_the_rules_right_and_their_tests_hold() {
    let promtool = tool(PROMETHEUS, "promtool");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy/prometheus");
    let (rules, tests) = (folder.join("rules.yaml"), folder.join("tests.yaml"));
    promtool.run(&["check", "rules", &rules.display().to_string()]);
    promtool.run(&[
        "check",
        "config",
        "--syntax-only",
        &folder.join("prometheus.yaml").display().to_string(),
    ]);
    promtool.run(&["test", "rules", &tests.display().to_string()]);
}

/// An alert without a page, a test or a cause is none.
#[test]
fn every_alert_has_a_summary_a_runbook_and_a_test() {
    let rules: Value = serde_yaml_ng::from_str(&repository_file("deploy/prometheus/rules.yaml")).unwrap();
    let tests = repository_file("deploy/prometheus/tests.yaml");
    let index = repository_file("docs/runbooks/README.md");
    let groups = rules["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
    let mut alerts = 0;
    for alert in rules.filter(|rule| rule["alert"].is_string()) {
        alerts += 1;
        let name = alert["alert"].as_str().unwrap();
        let note = |note: &str| alert["annotations"][note].as_str().unwrap_or_default();
        assert!(!note("summary").is_empty() && !note("description").is_empty(), "{name}");
        let page =
            note("runbook_url").split("/docs/").nth(1).unwrap_or_else(|| panic!("{name} has no runbook"));
        let text = repository_file(&format!("docs/{page}"));
        assert!(text.starts_with(&format!("# {name}: ")), "{page} is of another alert than {name}");
        assert!(
            text.contains("**What it means.**")
                && text.contains("\n## Look\n")
                && text.contains("\n## Mend\n")
        );
        assert!(index.contains(&format!("[{name}]")), "{name} is not in the list of runbooks");
        assert!(tests.contains(&format!("alertname: {name}\n")), "{name} has no test");
        assert!(matches!(alert["labels"]["severity"].as_str(), Some("page" | "ticket")), "{name}");
    }
    assert!(alerts >= 12, "only {alerts}");
}
