//! The example `graceful_shutdown` as a process that gets real signals.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

struct Example {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Example {
    /// `None` where it was not built, as when only this test binary is.
    fn start(directory: &Path, step_ms: &str) -> Option<Example> {
        let tests = std::env::current_exe().expect("this executable");
        let example = tests.parent()?.parent()?.join("examples/graceful_shutdown");
        if !example.exists() {
            eprintln!("skipped: {} is not built", example.display());
            return None;
        }
        let mut command = Command::new(example);
        command.args(["--step-ms", step_ms]).current_dir(directory).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the example");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Some(Example { child, lines })
    }

    /// Reads on up to a line with that in it.
    fn says(&mut self, text: &str) {
        let found = self.lines.by_ref().map(|line| line.expect("the pipe")).any(|line| line.contains(text));
        assert!(found, "it never said {text:?}");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is there");
    }

    fn code(mut self) -> Option<i32> {
        self.child.wait().expect("its end").code()
    }
}

#[test]
fn p15_the_example_stops_at_the_first_signal_and_at_once_at_the_second() {
    for signals in [[Signal::TERM, Signal::INT], [Signal::INT, Signal::TERM]] {
        let directory = tempfile::tempdir().expect("a directory");
        let Some(mut example) = Example::start(directory.path(), "300") else { return };
        example.says("step 1 of");
        example.signal(signals[0]);
        example.says("told to stop");
        example.says("closed");
        assert_eq!(example.code(), Some(0));

        let mut example = Example::start(directory.path(), "300").expect("it was there");
        example.says("Idempotent");
        example.says("step ");
        example.signal(signals[0]);
        example.says("shutting down");
        example.signal(signals[1]);
        example.says("at once");
        assert_eq!(example.code(), Some(130));

        // What was recorded is not run again, and the rest is.
        let example = Example::start(directory.path(), "1").expect("it was there");
        let said: Vec<String> = example.lines.map(|line| line.expect("the pipe")).collect();
        assert!(said.iter().any(|line| line.contains("counted to 20")), "{said:?}");
        assert!(said.iter().all(|line| !line.contains("step 1 of")), "{said:?}");
    }
}
