//! The secret by which flows are spread, kept beside the store: an inside host has the same address of an IPv6 range
//! after a boot or a detach (NAT-3, CAP-9).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use egress_common::siphash::Secret;

use super::Plane;
use crate::dataplane::api::DataPlaneError;
use crate::dataplane::versions;

impl Plane {
    /// Where the secret of the daemon with this store is kept.
    pub fn secret_beside(store: &Path) -> PathBuf {
        store.with_extension("secret")
    }

    /// Goes on with the secret of an earlier data plane if nothing has been in force with this one's yet; otherwise
    /// keeps this one's for a later one. A file that cannot be used costs other addresses after the next boot, no more.
    ///
    /// # Errors
    /// When the maps cannot be read or written.
    pub fn keep_secret(&mut self, path: &Path) -> Result<(), DataPlaneError> {
        let own: Secret = self.maps.only("SECRET")?;
        let kept = read(path).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "the secret of earlier addresses cannot be read");
            None
        });
        match kept {
            Some(kept) if kept == own => Ok(()),
            Some(kept) if !versions::is_configured(&self.maps)? => self.maps.set("SECRET", 0, kept),
            _ => {
                if let Err(error) = write(path, own) {
                    tracing::warn!(
                        %error, path = %path.display(),
                        "the secret is not kept: inside hosts have other IPv6 addresses after the next boot"
                    );
                }
                Ok(())
            }
        }
    }
}

/// What is kept; nothing where there is no file, or none that was written to its end.
fn read(path: &Path) -> io::Result<Option<Secret>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(parse(&text))
}

fn parse(text: &str) -> Option<Secret> {
    let (k0, k1) = text.trim_end().split_once(' ')?;
    let word = |text: &str| {
        (text.len() == 16)
            .then(|| u64::from_str_radix(text, 16).ok())
            .flatten()
    };
    Some(Secret {
        k0: word(k0)?,
        k1: word(k1)?,
    })
}

/// Written aside and renamed: it is there as a whole or not at all, and for its owner only.
fn write(path: &Path, secret: Secret) -> io::Result<()> {
    let aside = path.with_extension("secret-new");
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)?;
    writeln!(file, "{:016x} {:016x}", secret.k0, secret.k1)?;
    file.sync_all()?;
    fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_cut_off_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("egress.secret");
        assert!(read(&path).unwrap().is_none());
        let secret = Secret {
            k0: 7,
            k1: u64::MAX,
        };
        write(&path, secret).unwrap();
        write(&path, secret).unwrap();
        assert!(read(&path).unwrap() == Some(secret));
        let text = fs::read_to_string(&path).unwrap();
        for end in 0..text.len() - 1 {
            assert!(parse(&text[..end]).is_none(), "{end}");
        }
        assert!(read(directory.path()).is_err());
    }
}
