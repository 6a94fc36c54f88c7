//! What the binary owes to where it is installed: a service manager is told how it is, and shells complete its verbs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::disallowed_methods, reason = "real processes take real time")]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Whatever a test waits for comes long before this, or never.
const PATIENCE: Duration = Duration::from_mins(1);

/// After which the service manager of these tests takes a process for hung.
const WATCHDOG: Duration = Duration::from_secs(3);

/// A service manager with one service.
struct Manager {
    path: PathBuf,
    socket: UnixDatagram,
}

/// Killed when the test is over, however it ends.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        // Only fails for one that has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Service {
    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Manager {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("shoal-nt-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        let socket = UnixDatagram::bind(path.join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self { path, socket }
    }

    fn shoal(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
        command.args(args).stdin(Stdio::null());
        command.env("SHOAL_CLUSTER", self.path.join("admin")).env_remove("SHOAL_TOKEN");
        command
    }

    fn start(&self, args: &[&str]) -> Service {
        let log = fs::File::create(self.path.join(format!("{}.log", args[0]))).unwrap();
        let mut command = self.shoal(args);
        command.env("NOTIFY_SOCKET", self.path.join("notify"));
        command.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
        Service(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }

    /// The next words, unless there are none for a moment.
    fn hear(&self) -> Option<String> {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    #[track_caller]
    fn wait_for(&self, word: &str) -> String {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "waited in vain for {word}: {}", self.logs());
            match self.hear() {
                Some(said) if said.lines().any(|line| line.starts_with(word)) => return said,
                _ => {}
            }
        }
    }

    fn logs(&self) -> String {
        let read = |verb: &str| {
            fs::read_to_string(self.path.join(format!("{verb}.log"))).unwrap_or_default()
        };
        format!("{}\n{}", read("coordinator"), read("worker"))
    }

    fn state(&self, of: &str) -> String {
        self.path.join(of).display().to_string()
    }

    fn coordinator(&self) -> Service {
        self.start(&["coordinator", "--state", &self.state("state"), "--listen", "127.0.0.1:0"])
    }
}

#[test]
fn a_coordinator_says_that_it_is_ready_alive_and_on_its_way_out() {
    let manager = Manager::new("coordinator");
    let mut coordinator = manager.coordinator();
    let said = manager.wait_for("READY=1");
    assert!(said.contains("STATUS=cluster shoal at 127.0.0.1:"), "{said}");
    // Fed again and again, in time.
    for _ in 0..3 {
        let start = Instant::now();
        manager.wait_for("WATCHDOG=1");
        assert!(start.elapsed() < WATCHDOG, "{:?}", start.elapsed());
    }
    // One that is held feeds nobody.
    coordinator.signal("-STOP");
    while manager.hear().is_some() {}
    let start = Instant::now();
    while start.elapsed() < WATCHDOG {
        assert_eq!(manager.hear(), None);
    }
    coordinator.signal("-CONT");
    manager.wait_for("WATCHDOG=1");
    coordinator.signal("-TERM");
    manager.wait_for("STOPPING=1");
    assert_eq!(coordinator.0.wait().unwrap().code(), Some(0));
}

#[test]
fn a_rig_is_ready_and_alive_whether_its_coordinator_is_there_or_not() {
    let manager = Manager::new("worker");
    let coordinator = manager.coordinator();
    manager.wait_for("READY=1");
    let token = manager.shoal(&["token", "create"]).output().unwrap();
    assert!(token.status.success(), "{}", String::from_utf8_lossy(&token.stderr));
    let file = manager.path.join("token");
    fs::write(&file, token.stdout).unwrap();
    let address = fs::read_to_string(manager.path.join("admin/address")).unwrap();
    let (file, state) = (file.display().to_string(), manager.state("rig"));
    let join = [
        "worker",
        "--state",
        &state,
        "--name",
        "a",
        "--join",
        address.trim(),
        "--token-file",
        &file,
    ];
    let mut rig = manager.start(&join);
    manager.wait_for("READY=1");
    manager.wait_for("STATUS=attending");
    drop(coordinator);
    manager.wait_for("STATUS=the coordinator at");
    // Nobody else is left to feed.
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    assert!(manager.path.join("rig/alive").exists() && manager.path.join("state/alive").exists());
    rig.signal("-TERM");
    assert_eq!(rig.0.wait().unwrap().code(), Some(0));
}

#[test]
fn shells_complete_verbs() {
    let completion = |shell: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_shoal")).args(["completion", shell]).output().unwrap();
        assert!(output.status.success(), "{shell}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(completion("zsh").starts_with("#compdef shoal\n"));
    assert!(completion("fish").contains("complete -c shoal"));
    // bash is on every machine that runs these tests: it really completes.
    let bash = "source /dev/stdin; COMP_WORDS=(shoal unc); COMP_CWORD=1; _shoal shoal unc shoal; echo ${COMPREPLY[@]}";
    let path = std::env::temp_dir().join(format!("shoal-completion-{}", std::process::id()));
    fs::write(&path, completion("bash")).unwrap();
    let script = fs::File::open(&path).unwrap();
    let output = Command::new("bash").args(["--norc", "-c", bash]).stdin(script).output().unwrap();
    fs::remove_file::<&Path>(&path).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "uncordon");
}
