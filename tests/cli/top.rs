//! `shoal top` from outside: one picture into a pipe, and a terminal that is as it was when it ends, however it ends.

use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::*;

/// What a terminal is told at the beginning, and what takes it back.
const OTHER_SCREEN: &str = "\u{1b}[?1049h";
const OWN_SCREEN: &str = "\u{1b}[?1049l";
const CURSOR: &str = "\u{1b}[?25h";

/// A run that is over.
pub(super) fn run(place: &Place) -> String {
    let run = place.0.join("run");
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("manifest.json"), "{}").unwrap();
    let step = |n: u32| format!("{{\"step\": {n}, \"loss\": {}.25, \"main_loss\": 1}}\n", 50 - n);
    fs::write(run.join("metrics.jsonl"), (1..=40).map(step).collect::<String>()).unwrap();
    let event = "{\"time\": 1.0, \"seconds\": 72.8, \"generation\": 1, \"step\": 40, \"kind\": \"finished\", \
                 \"fact\": \"evil \\u001b[2J words\"}\n";
    fs::write(run.join("events.jsonl"), event).unwrap();
    run.display().to_string()
}

#[test]
fn without_a_terminal_one_picture_is_shown_and_said_to_be_one() {
    let place = Place::new("top-once");
    let run = run(&place);
    for (args, is_said) in [(&["top", &run][..], true), (&["top", &run, "--once"], false)] {
        let output = shoal(args);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{err}");
        assert_eq!(out.lines().count(), 24, "{out}");
        for wanted in [
            "not under way",
            "loss 10.250 at step 40",
            "1:12.8  step 40  finished",
            "u{1b}[2J words",
        ] {
            assert!(out.contains(wanted), "{wanted}: {out}");
        }
        assert!(!out.contains('\u{1b}'), "{out}");
        assert_eq!(err.contains("one picture"), is_said, "{err}");
    }
    let nowhere = shoal(&["top", "no/such-run"]);
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(text(&nowhere.stderr).contains("is not a run directory"), "{}", text(&nowhere.stderr));
}

/// A terminal of script(1), with `top` in it and a shell around that.
struct Screen {
    child: Child,
    out: ChildStdout,
    shown: String,
}

impl Screen {
    fn new(place: &Place, command: &str) -> Self {
        let mut script = Command::new("script");
        script.args(["-qfec", command, "/dev/null"]).env("TERM", "xterm").env("LC_ALL", "C.UTF-8");
        script.env("XDG_CONFIG_HOME", place.0.join("config")).env_remove("SHOAL_CLUSTER");
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = script.spawn().expect("script, of util-linux");
        let out = child.stdout.take().unwrap();
        Self { child, out, shown: String::new() }
    }

    /// Reads until the terminal was shown this.
    fn await_text(&mut self, wanted: &str) {
        let mut bytes = [0; 4096];
        while !self.shown.contains(wanted) {
            let n = self.out.read(&mut bytes).unwrap();
            assert!(n > 0, "{wanted:?} was not shown: {:?}", self.shown);
            self.shown.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
    }

    fn press(&mut self, keys: &str) {
        self.child.stdin.as_mut().unwrap().write_all(keys.as_bytes()).unwrap();
    }

    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), self.shown + &rest)
    }
}

#[test]
fn q_ends_it_and_leaves_the_terminal_as_it_was() {
    let place = Place::new("top-keys");
    let command = format!(
        "stty rows 24 cols 80; {} top {}; echo CODE $?; stty -a",
        env!("CARGO_BIN_EXE_shoal"),
        run(&place)
    );
    let mut screen = Screen::new(&place, &command);
    screen.await_text("events");
    screen.press("?");
    screen.await_text("the next part");
    screen.press("?\tq");
    let (_, shown) = screen.end();
    let (picture, after) = shown.split_once(OWN_SCREEN).expect("the screen of before is back");
    assert!(picture.contains(OTHER_SCREEN) && picture.contains("not under way"), "{picture:?}");
    assert!(after.contains(CURSOR) || picture.ends_with(CURSOR), "{after:?}");
    assert!(after.contains("CODE 0"), "{after:?}");
    let modes: Vec<&str> = after.split_whitespace().collect();
    for sane in ["icanon", "echo", "isig"] {
        assert!(modes.contains(&sane), "{sane}: {after:?}");
    }
}

#[test]
fn signals_and_ctrl_c_end_it_with_their_codes_and_the_terminal_as_it_was() {
    for (key, signal, code) in [(Some("\u{3}"), "", 130), (None, "TERM", 143), (None, "HUP", 129)] {
        let place = Place::new(&format!("top-signal-{code}"));
        let command = format!(
            "stty rows 24 cols 80; echo PID $$; exec {} top {}",
            env!("CARGO_BIN_EXE_shoal"),
            run(&place)
        );
        let mut screen = Screen::new(&place, &command);
        screen.await_text("events");
        if let Some(key) = key {
            screen.press(key);
        } else {
            let pid = screen.shown.split("PID ").nth(1).unwrap();
            let pid: String = pid.chars().take_while(char::is_ascii_digit).collect();
            assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
        }
        let (ended, shown) = screen.end();
        assert_eq!(ended, Some(code), "{shown:?}");
        assert!(shown.contains(OWN_SCREEN), "{shown:?}");
    }
}
