//! What tests that failed had printed, read from libtest's output line by line and told again at the end of a run,
//! where whoever reads a long log looks first.

use std::collections::VecDeque;

/// Most lines told of one test.
const LINES: usize = 30;

/// The stories of the tests that failed.
#[derive(Default)]
pub(crate) struct Stories {
    /// The last lines of the test that is being told of.
    current: VecDeque<String>,
    /// Whether what is told now is of tests that failed, whose output was kept back until the end.
    failures: bool,
    kept: Vec<String>,
}

impl Stories {
    /// Takes in one line of output.
    pub(crate) fn line(&mut self, line: &str) {
        if line == "failures:" {
            self.keep_if(self.failures);
            self.failures = true;
        } else if line == "successes:" || line.starts_with("test result: ") {
            self.current.clear();
            self.failures = false;
        } else if line.starts_with("---- ") && line.ends_with(" ----") {
            self.keep_if(self.failures);
            self.add(line);
        } else if line.starts_with("test ") && line.contains(" ... ") {
            self.current.clear();
            self.add(line);
        } else if line == "FAILED" {
            // Of a test whose output was shown as it came.
            self.keep_if(true);
        } else if !is_frame(line) {
            self.add(line);
        }
    }

    /// All of them.
    pub(crate) fn told(&self) -> &[String] {
        &self.kept
    }

    fn add(&mut self, line: &str) {
        if line.is_empty() {
            return;
        }
        if self.current.len() == LINES {
            // The first line names the test.
            self.current.remove(1);
        }
        self.current.push_back(line.chars().take(500).collect());
    }

    fn keep_if(&mut self, failed: bool) {
        let story: Vec<String> = self.current.drain(..).collect();
        if failed && !story.is_empty() {
            self.kept.push(story.join("\n"));
        }
    }
}

/// Whether a line is of a stack backtrace: a frame's number and function, or its place.
fn is_frame(line: &str) -> bool {
    let line = line.trim_start();
    let numbered = line
        .split_once(": ")
        .is_some_and(|(number, _)| number.parse::<u32>().is_ok());
    numbered || line.starts_with("at ") || line == "stack backtrace:"
}

#[cfg(test)]
mod tests {
    use super::{LINES, Stories};

    fn told(output: &str) -> Vec<String> {
        let mut stories = Stories::default();
        output.lines().for_each(|line| stories.line(line));
        stories.told().to_vec()
    }

    #[test]
    fn output_that_was_kept_back() {
        let told = told(
            "running 2 tests\n\
             test one ... FAILED\n\
             test two ... ok\n\
             \n\
             successes:\n\
             ---- two stdout ----\n\
             hello\n\
             \n\
             failures:\n\
             \n\
             ---- one stdout ----\n\
             thread 'one' panicked at a.rs:1:2:\n\
             left is not right\n\
             stack backtrace:\n   \
                0: rust_begin_unwind\n             \
                          at ./a.rs:1:2\n\
             \n\
             failures:\n    \
                 one\n\
             \n\
             test result: FAILED. 1 passed; 1 failed; 0 ignored\n",
        );
        assert_eq!(
            told,
            ["---- one stdout ----\nthread 'one' panicked at a.rs:1:2:\nleft is not right"]
        );
    }

    #[test]
    fn output_that_was_shown_as_it_came() {
        let mut output = "test one ... ok\ntest two ... seed 1\n".to_owned();
        for nth in 0..100 {
            output.push_str(&format!("line {nth}\n"));
        }
        output.push_str("Error: nobody answered\nFAILED\ntest three ... ok\n");
        output.push_str(
            "\nfailures:\n\nfailures:\n    two\n\ntest result: FAILED. 2 passed; 1 failed\n",
        );
        let told = told(&output);
        assert_eq!(told.len(), 1);
        let lines: Vec<_> = told[0].lines().collect();
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines[0], "test two ... seed 1");
        assert_eq!(lines[LINES - 1], "Error: nobody answered");
    }
}
