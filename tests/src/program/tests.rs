use std::os::unix::process::ExitStatusExt;

use super::*;
use crate::eventually;

/// A stand-in for the program: says that it is ready, then logs until it is asked to end.
const SERVICE: &str = r#"
    echo "backstamp dev is ready: http://127.0.0.1:1 (ops http://127.0.0.1:2)"
    trap 'echo drained >&2; exit 0' TERM
    while :; do echo "$BACKSTAMP_WORD" >&2; sleep 0.02; done
"#;

async fn service() -> Running {
    Running::start(Path::new("sh"), &["-c", SERVICE], &[("BACKSTAMP_WORD", "tick")]).await
}

#[tokio::test]
async fn a_service_tells_its_addresses_and_ends_when_asked() {
    let running = service().await;
    assert_eq!(running.url(), "http://127.0.0.1:1");
    assert_eq!(running.ops_url(), "http://127.0.0.1:2");
    assert_eq!(running.ops_address(), "127.0.0.1:2");
    assert!(running.sigterm_and_wait().await.success());
    eventually(Duration::from_secs(5), async || {
        anyhow::ensure!(running.stderr().ends_with("tick\ndrained\n"), "{}", running.stderr());
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_stopped_service_goes_on_when_let() {
    let running = service().await;
    let grows = async |from: usize| {
        anyhow::ensure!(running.stderr().len() > from, "nothing more is logged");
        Ok(())
    };
    eventually(Duration::from_secs(5), || grows(0)).await;
    running.stop();
    let state = std::fs::read_to_string(format!("/proc/{}/stat", running.pid()));
    assert!(state.expect("it is there").contains(") T "));
    running.cont();
    let so_far = running.stderr().len();
    eventually(Duration::from_secs(5), || grows(so_far)).await;
}

#[tokio::test]
async fn a_killed_service_is_gone() {
    let running = service().await;
    let proc = format!("/proc/{}", running.pid());
    running.kill9();
    assert!(running.has_ended() && !Path::new(&proc).exists());
    assert_eq!(
        running.spawned.wait(DRAIN_TIMEOUT).await.and_then(|status| status.signal()),
        Some(libc::SIGKILL)
    );
}

#[tokio::test]
#[should_panic(
    expected = "ended before it was ready: exit status: 3\n--- standard output\n\n--- standard error\nwrong option"
)]
async fn a_service_that_does_not_start_is_shown() {
    Running::start(Path::new("sh"), &["-c", "echo wrong option >&2; exit 3"], &[]).await;
}

#[tokio::test]
async fn a_tool_is_run_to_its_end() {
    let script = "echo out; echo err >&2; exit 4";
    let output = Spawned::new(Path::new("sh"), &["-c", script], &[]).output().await;
    assert_eq!(
        (output.status.code(), output.stdout.as_str(), output.stderr.as_str()),
        (Some(4), "out\n", "err\n")
    );
}

#[test]
fn ports_are_added_where_the_caller_leaves_them_open() {
    let all =
        |arguments: &[&str], environment: &[(&str, &str)]| with_free_ports(arguments, environment).join(" ");
    assert_eq!(all(&["dev"], &[]), "dev --listen=127.0.0.1:0 --ops-listen=127.0.0.1:0");
    assert_eq!(all(&["ingest"], &[]), "ingest --ops-listen=127.0.0.1:0");
    assert_eq!(
        all(&["query", "--listen", "[::1]:5"], &[("BACKSTAMP_OPS_LISTEN", "[::1]:6")]),
        "query --listen [::1]:5"
    );
    assert_eq!(all(&["keys", "list"], &[]), "keys list");
}

#[test]
fn ready_lines_are_read() {
    let addresses = ready_line("backstamp query is ready: http://127.0.0.1:80 (ops http://127.0.0.1:81)");
    let both =
        Addresses { url: Some("http://127.0.0.1:80".to_owned()), ops_url: "http://127.0.0.1:81".to_owned() };
    assert_eq!(addresses, Some(both));
    let addresses = ready_line("backstamp ingest is ready: (ops http://127.0.0.1:81)");
    assert_eq!(addresses, Some(Addresses { url: None, ops_url: "http://127.0.0.1:81".to_owned() }));
    assert_eq!(ready_line("backstamp is getting ready"), None);
}

#[test]
fn the_first_key_is_found() {
    assert_eq!(find_key("the key, shown once:\n  wbk_aZ-9_x\nkeep it"), Some("wbk_aZ-9_x"));
    assert_eq!(find_key("wbk_"), None);
    assert_eq!(find_key("none"), None);
}
