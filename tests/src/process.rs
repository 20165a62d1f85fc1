//! Child processes that end with the test process, even when that is killed.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(10);

/// Starts `command`; the kernel kills the child when this process ends.
///
/// The kernel watches the *thread* that forked, not the process. So one thread that lives as long as the
/// process does all the forking: a test's own thread ends with its test.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    static PARENT: OnceLock<Sender<Order>> = OnceLock::new();
    let parent = PARENT.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        thread::spawn(move || {
            for Order { mut command, reply } in inbox {
                // Nobody waits for the reply where the test has ended meanwhile.
                let _ = reply.send(tie(&mut command).spawn());
            }
        });
        orders
    });
    let (reply, answer) = channel();
    let gone = || io::Error::other("the thread that starts processes has ended");
    parent.send(Order { command, reply }).map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}

struct Order {
    command: Command,
    reply: Sender<io::Result<Child>>,
}

#[expect(unsafe_code, reason = "what runs between fork and exec cannot be checked by the compiler")]
fn tie(command: &mut Command) -> &mut Command {
    let parent = std::process::id();
    // SAFETY: prctl, getppid and an error made from a number neither allocate nor lock.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have gone before the line above.
            if u32::try_from(libc::getppid()) != Ok(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        })
    }
}

/// Sends `signal` to a child of ours. One that has ended is left alone: its number may be another's by now.
#[expect(unsafe_code, reason = "the standard library sends SIGKILL only")]
pub(crate) fn send_signal(child: &mut Child, signal: libc::c_int) -> io::Result<()> {
    if child.try_wait()?.is_some() {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    // SAFETY: takes two numbers and touches no memory.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends SIGSTOP, and returns when the child stands still.
pub(crate) fn stop(child: &mut Child) -> io::Result<()> {
    send_signal(child, libc::SIGSTOP)?;
    let stat = format!("/proc/{}/stat", child.id());
    while !std::fs::read_to_string(&stat)?.contains(") T ") {
        thread::sleep(POLL);
    }
    Ok(())
}

/// Waits for `child` to end. `None` when it is still there at the deadline.
pub(crate) fn wait_until(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// Sends all that `command` prints to the end of the file `log`.
pub(crate) fn log_to(mut command: Command, log: &Path) -> io::Result<Command> {
    let file = File::options().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    Ok(command)
}

/// The last `lines` lines of `text`.
pub(crate) fn tail(text: &str, lines: usize) -> &str {
    let text = text.trim_end();
    let start = text.rmatch_indices('\n').nth(lines.saturating_sub(1)).map_or(0, |(at, _)| at + 1);
    &text[start..]
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;
    use crate::{eventually, scratch};

    const HOLD: &str = "HOLD_UNTIL_KILLED";

    #[tokio::test]
    async fn nothing_is_left_of_a_test_process_that_is_killed() {
        let mut command = Command::new(std::env::current_exe().expect("a test is a program"));
        command.args(["--exact", "process::tests::hold_until_killed", "--nocapture"]).env(HOLD, "1");
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut tests = spawn(command).expect("it starts");
        let printed = BufReader::new(tests.stderr.take().expect("a pipe"));
        let held = printed
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("held ").map(str::to_owned));
        let held = held.expect("it says what it holds");
        let (pid, directory) = held.split_once(' ').expect("two words");
        let child = Path::new("/proc").join(pid);
        assert!(child.exists() && Path::new(directory).exists());

        tests.kill().expect("it can be killed");
        tests.wait().expect("it ends");
        eventually(Duration::from_secs(30), async || {
            let state = std::fs::read_to_string(child.join("stat")).unwrap_or_default();
            anyhow::ensure!(state.is_empty() || state.contains(") Z "), "its child is there: {state}");
            anyhow::ensure!(!Path::new(directory).exists(), "its directory is there");
            Ok(())
        })
        .await;
    }

    /// What the test above runs in a process of its own, and kills.
    #[test]
    fn hold_until_killed() {
        if std::env::var_os(HOLD).is_none() {
            return;
        }
        let directory = scratch::directory("held");
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        // On a thread that ends: what it started is to stay.
        let mut child = thread::spawn(|| spawn(sleep).expect("it starts")).join().expect("no panic");
        eprintln!("held {} {}", child.id(), directory.display());
        child.wait().expect("it can be waited for");
    }

    #[test]
    fn tail_is_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a\nb\n", 2), "a\nb");
        assert_eq!(tail("a", 2), "a");
        assert_eq!(tail("", 2), "");
    }
}
