//! A program at a terminal of its own: keys go in, and a terminal emulator tells what its screen shows.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    num::NonZeroU16,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, tcgetattr},
    },
    unistd::Pid,
};
use vt100::{Color, Parser, Screen};

use crate::wait;

/// How long the screen may take to show something.
const LIMIT: Duration = Duration::from_secs(60);

/// A terminal and the program in it. Dropping it ends the program.
pub struct Terminal {
    child: Child,
    keyboard: File,
    /// The program's end stays open here, so that what the terminal is set to can be asked afterwards.
    line: OwnedFd,
    parser: Arc<Mutex<Parser>>,
}

impl Terminal {
    /// Starts a program at a terminal of so many columns and rows.
    ///
    /// # Errors
    /// When there is no terminal to be had, or the program does not start.
    pub fn start(command: &mut Command, columns: u16, rows: u16) -> Result<Self> {
        let size = size(columns, rows);
        let pair = openpty(&size, None).context("no pseudo-terminal")?;
        let end = || pair.slave.try_clone();
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        // A session of its own, so that whatever terminal the tests run at is not taken for this one. It does not lead this
        // one's session, as it does not where a shell does: with its leader a terminal hangs up, and what was written last
        // and nobody has read by then is lost.
        let leave = || {
            // SAFETY: a plain system call.
            if unsafe { libc::setsid() } < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        };
        // SAFETY: `leave` makes one system call and allocates nothing.
        unsafe { command.pre_exec(leave) };
        let child = command
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let keyboard = File::from(pair.master);
        let mut screen = keyboard.try_clone()?;
        let parser = Arc::new(Mutex::new(Parser::new(least(rows), least(columns), 0)));
        let drawn = Arc::clone(&parser);
        // Ends by itself with the last descriptor of the other end.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            loop {
                match screen.read(&mut bytes) {
                    Ok(read @ 1..) => lock(&drawn).process(&bytes[..read]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // Nobody has the other end any more.
                    Ok(0) | Err(_) => return,
                }
            }
        });
        Ok(Self {
            child,
            keyboard,
            line: pair.slave,
            parser,
        })
    }

    /// Presses keys.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.keyboard.write_all(keys.as_bytes())?;
        Ok(())
    }

    /// Makes the window another size, and tells the program so, as the kernel tells those of the terminal's session.
    ///
    /// # Errors
    /// When the terminal or the program is gone.
    pub fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        lock(&self.parser).set_size(least(rows), least(columns));
        let size = size(columns, rows);
        // SAFETY: reads a struct of ours; the descriptor is open.
        let set =
            unsafe { libc::ioctl(self.keyboard.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        if set < 0 {
            bail!("the window's size: {}", std::io::Error::last_os_error());
        }
        self.signal(Signal::SIGWINCH)
    }

    /// The lines that are shown.
    #[must_use]
    pub fn text(&self) -> String {
        lock(&self.parser).screen().contents()
    }

    /// What the emulator knows of the screen.
    pub fn screen<T>(&self, look: impl FnOnce(&Screen) -> T) -> T {
        look(lock(&self.parser).screen())
    }

    /// Waits until what is shown is as wanted.
    ///
    /// # Errors
    /// When it is not in time; the message holds the screen.
    pub fn shows(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let shown = wait::until(what, LIMIT, || {
            let text = self.text();
            Ok(wanted(&text).then_some(text))
        });
        shown.with_context(|| format!("the screen shows\n{}", self.text()))
    }

    /// Waits until the terminal is as a shell wants it: its own screen, a cursor, lines that are edited and echoed. What the
    /// program wrote last may still be on its way to the emulator.
    ///
    /// # Errors
    /// When it is not in time; the message says what is missing.
    pub fn wait_restored(&self) -> Result<()> {
        let mut last = None;
        let restored = wait::until_true("the terminal to be restored", LIMIT, || {
            let flags = tcgetattr(&self.line)?.local_flags;
            let edits = flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG);
            let (other, hidden) =
                self.screen(|screen| (screen.alternate_screen(), screen.hide_cursor()));
            last = Some((edits, other, hidden));
            Ok(edits && !other && !hidden)
        });
        restored.with_context(|| format!("edits, other screen, hidden cursor: {last:?}"))
    }

    /// Sends the program a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    /// Waits until the program has ended.
    ///
    /// # Errors
    /// When it does not in time; the message holds the screen.
    pub fn wait_end(&mut self) -> Result<ExitStatus> {
        let child = &mut self.child;
        let ended = wait::until("the program to end", LIMIT, || Ok(child.try_wait()?));
        ended.with_context(|| format!("the screen shows\n{}", self.text()))
    }

    /// The screen as an SVG image.
    #[must_use]
    pub fn svg(&self) -> String {
        self.screen(svg)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A lock that a failed test does not spoil.
fn lock(parser: &Mutex<Parser>) -> MutexGuard<'_, Parser> {
    parser.lock().unwrap_or_else(PoisonError::into_inner)
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn least(length: u16) -> NonZeroU16 {
    NonZeroU16::new(length).unwrap_or(NonZeroU16::MIN)
}

/// Pixels of a cell.
const CELL: (usize, usize) = (8, 17);
/// Pixels around the screen.
const EDGE: usize = 10;

fn svg(screen: &Screen) -> String {
    let (rows, columns) = screen.size();
    let (width, height) = (
        usize::from(columns.get()) * CELL.0 + 2 * EDGE,
        usize::from(rows.get()) * CELL.1 + 2 * EDGE,
    );
    let mut image = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"monospace\" \
         font-size=\"13\" fill=\"#d8dee6\">\n<rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#14181d\"/>\n"
    );
    for row in 0..rows.get() {
        let mut column = 0;
        while column < columns.get() {
            let start = column;
            let look = |column| {
                let cell = screen.cell(row, column)?;
                Some((cell.fgcolor(), cell.bold(), cell.dim()))
            };
            let style = look(start);
            let mut text = String::new();
            while column < columns.get() && look(column) == style {
                let letter = screen.cell(row, column).map_or("", vt100::Cell::contents);
                text.push_str(if letter.is_empty() { " " } else { letter });
                column += 1;
            }
            if text.trim().is_empty() {
                continue;
            }
            let (color, bold, dim) = style.unwrap_or_default();
            let lead = text.len() - text.trim_start().len();
            let (x, y) = (
                EDGE + (usize::from(start) + lead) * CELL.0,
                EDGE + usize::from(row) * CELL.1 + 13,
            );
            let text = text.trim();
            let length = text.chars().count() * CELL.0;
            let text = text.replace('&', "&amp;").replace('<', "&lt;");
            image.push_str(&format!(
                "<text x=\"{x}\" y=\"{y}\" textLength=\"{length}\" xml:space=\"preserve\"{}{}{}>{text}</text>\n",
                fill(color),
                if bold { " font-weight=\"bold\"" } else { "" },
                if dim { " opacity=\"0.6\"" } else { "" },
            ));
        }
    }
    image.push_str("</svg>\n");
    image
}

fn fill(color: Color) -> &'static str {
    match color {
        Color::Idx(1 | 9) => " fill=\"#ff6b6b\"",
        Color::Idx(2 | 10) => " fill=\"#6bcf7f\"",
        Color::Idx(3 | 11) => " fill=\"#e5c07b\"",
        _ => "",
    }
}
