//! A little disk space kept back for the moment there is none left.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::file::{Medium, gone_is_ok, nofollow};

/// Enough for the commits that record the outcomes of what was executing when the disk filled up.
const RESERVE_BYTES: u64 = 1 << 20;

/// A file of real blocks beside the database, given up when the disk is full so that outcomes still fit.
#[derive(Debug)]
pub(crate) struct Reserve {
    /// None where the medium has no disk.
    path: Option<PathBuf>,
    held: bool,
}

impl Reserve {
    /// Holds `<name>.reserve`, beside the file that is there and not beside a symbolic link to it: that may be on another disk. A
    /// disk that is already full is no error: there just is no reserve, until [`Self::restore`].
    pub(crate) fn hold(medium: &Medium) -> io::Result<Self> {
        let path = match medium {
            Medium::File(path) => {
                let path = fs::canonicalize(path)?;
                let mut name = path.file_name().unwrap_or_default().to_os_string();
                name.push(".reserve");
                Some(path.with_file_name(name))
            }
            Medium::Memory(_) | Medium::Custom(_) => None,
        };
        let mut reserve = Self { path, held: false };
        match reserve.restore() {
            Err(error) if !matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => Err(error),
            _ => Ok(reserve),
        }
    }

    /// No reserve, where none can be held.
    pub(crate) fn absent() -> Self {
        Self { path: None, held: false }
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    /// There should be one, and the disk has no room for it.
    pub(crate) fn is_missing(&self) -> bool {
        self.path.is_some() && !self.held
    }

    /// Frees the blocks. False where there were none to free.
    pub(crate) fn give_up(&mut self) -> io::Result<bool> {
        let Some(path) = self.path.as_ref().filter(|_| self.held) else { return Ok(false) };
        let freed = fs::remove_file(path).map(|()| true).or_else(|error| gone_is_ok(error).map(|()| false))?;
        self.held = false;
        Ok(freed)
    }

    /// Takes the blocks again; an error while the disk is still full.
    pub(crate) fn restore(&mut self) -> io::Result<()> {
        let Some(path) = self.path.as_ref().filter(|_| !self.held) else { return Ok(()) };
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false).mode(0o600).custom_flags(nofollow()).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > RESERVE_BYTES {
            return Err(io::Error::new(ErrorKind::AlreadyExists, format!("{} is not a reserve file", path.display())));
        }
        if let Err(error) = allocate(&file) {
            // The part that did fit is better left to the database.
            fs::remove_file(path)?;
            return Err(error);
        }
        self.held = true;
        Ok(())
    }
}

fn allocate(mut file: &File) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        match fallocate(file, FallocateFlags::empty(), 0, RESERVE_BYTES) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            allocated => return Ok(allocated?),
        }
    }
    let zeros = [0; 64 << 10];
    for _ in 0..RESERVE_BYTES / zeros.len() as u64 {
        file.write_all(&zeros)?;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::super::backend::SharedMemory;
    use super::*;

    #[test]
    fn a_reserve_is_given_up_and_restored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jobs.redb");
        fs::write(&path, b"").unwrap();
        let file = path.with_file_name("jobs.redb.reserve");
        let mut reserve = Reserve::hold(&Medium::File(path.clone())).unwrap();
        assert!(fs::metadata(&file).unwrap().blocks() * 512 >= RESERVE_BYTES);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(reserve.give_up().unwrap());
        assert!(!file.exists() && !reserve.is_held() && reserve.is_missing());
        assert!(!reserve.give_up().unwrap());
        reserve.restore().unwrap();
        assert!(reserve.is_held() && !reserve.is_missing());
        drop(reserve);
        assert!(Reserve::hold(&Medium::File(path.clone())).unwrap().is_held());

        fs::write(&file, vec![1; RESERVE_BYTES as usize + 1]).unwrap();
        assert_eq!(Reserve::hold(&Medium::File(path)).unwrap_err().kind(), ErrorKind::AlreadyExists);

        let mut nothing = Reserve::hold(&Medium::Memory(SharedMemory::default())).unwrap();
        assert!(!nothing.give_up().unwrap() && !nothing.is_missing());
    }

    #[test]
    fn a_reserve_lies_beside_the_file_that_a_link_leads_to() {
        let (linked, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (link, path) = (linked.path().join("link"), dir.path().join("jobs.redb"));
        fs::write(&path, b"").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut reserve = Reserve::hold(&Medium::File(link)).unwrap();
        let file = dir.path().join("jobs.redb.reserve");
        assert!(file.is_file());
        assert_eq!(fs::read_dir(linked.path()).unwrap().count(), 1);
        assert!(reserve.give_up().unwrap());
        assert!(!file.exists());
    }
}
