//! Printing that does not panic when nobody listens.

use std::io::{self, Write};

use ddim_engine::error::{Error, Result};

/// Prints `text`. A closed pipe (`| head`) is no error: the reader has seen enough.
pub fn stdout(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("standard output", "write")(why)),
        _ => Ok(()),
    }
}

/// Prints a line for the person at the terminal.
pub fn stderr(line: &str) {
    writeln!(io::stderr(), "{line}").ok(); // a closed stream: there is nobody to tell
}
