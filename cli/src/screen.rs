//! Where a command prints, and whether colours are welcome there.

use std::io::{self, IsTerminal as _, Write};

/// When to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ColourWhen {
    /// On a terminal.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// A meaning that has a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    Bad,
    Doubtful,
    Quiet,
}

impl Tone {
    pub(crate) fn colour(self) -> comfy_table::Color {
        match self {
            Self::Good => comfy_table::Color::Green,
            Self::Bad => comfy_table::Color::Red,
            Self::Doubtful => comfy_table::Color::Yellow,
            Self::Quiet => comfy_table::Color::DarkGrey,
        }
    }

    /// SGR parameter (ECMA-48 §8.3.117).
    fn sgr(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Bad => "31",
            Self::Doubtful => "33",
            Self::Quiet => "90",
        }
    }
}

/// What a command prints its answer on.
pub(crate) struct Screen {
    out: Box<dyn Write>,
    pub(crate) colour: bool,
}

impl Screen {
    pub(crate) fn stdout(when: ColourWhen) -> Self {
        let out = io::stdout();
        let colour = match when {
            ColourWhen::Auto => out.is_terminal(),
            ColourWhen::Always => true,
            ColourWhen::Never => false,
        };
        Self { out: Box::new(out), colour }
    }

    #[cfg(test)]
    pub(crate) fn on(out: impl Write + 'static) -> Self {
        Self { out: Box::new(out), colour: false }
    }

    pub(crate) fn line(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.out, "{line}")
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// The text in the colour of its meaning, if colours are welcome.
    pub(crate) fn tint(&self, tone: Tone, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", tone.sgr()) } else { text.to_owned() }
    }
}

/// Tells the person at stderr, beside the answer.
pub(crate) fn tell(message: &str) {
    // Nobody is left to hear that stderr is closed.
    let _ = writeln!(io::stderr(), "{message}");
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    /// Keeps what is printed.
    #[derive(Clone, Default)]
    pub(crate) struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Kept {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
