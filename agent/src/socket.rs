//! Unix sockets that commands and Docker find the agent by.

use std::{fs, io, os::unix::fs::PermissionsExt, os::unix::net::UnixStream, path::Path};

use tokio::net::UnixListener;

/// Takes over the socket of a process that is gone, not that of one that runs.
pub fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir)?;
    }
    match UnixStream::connect(socket) {
        Ok(_) => {
            anyhow::bail!("another process serves it; stop that one, or give this one a socket of its own")
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => fs::remove_file(socket)?,
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}
