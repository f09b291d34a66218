// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The life of the process: one socket, one virtual machine.
//!
//! When the frontend hangs up, the device is shut down before the threads of the queues are told to
//! end: one of them may be waiting for a job.

use std::path::Path;
use std::sync::Arc;

use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};

use super::GpuBackend;
use crate::device::Device;

/// Why the process ends early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be made.
    #[error("cannot listen on {0}: {1}")]
    Listen(String, VhostUserError),
    /// The connection failed.
    #[error("vhost-user: {0}")]
    Daemon(DaemonError),
}

/// Listens on `socket`, calls `ready`, and serves the frontend that connects until it hangs up.
///
/// # Errors
///
/// If the socket cannot be made, or the frontend says something that makes no sense.
pub fn serve(device: &Arc<Device>, socket: &Path, ready: impl FnOnce()) -> Result<(), ServeError> {
    let backend = Arc::new(GpuBackend::new(device.clone()));
    let mut daemon = VhostUserDaemon::new("vhost-user".into(), backend, device.memory())
        .map_err(ServeError::Daemon)?;
    let mut listener = Listener::new(socket, true)
        .map_err(|error| ServeError::Listen(socket.display().to_string(), error))?;
    ready();
    daemon.start(&mut listener).map_err(ServeError::Daemon)?;
    let result = daemon.wait();
    device.shut_down();
    for thread in daemon.get_epoll_handlers() {
        thread.send_exit_event();
    }
    device.end();
    match result {
        Err(DaemonError::HandleRequest(
            VhostUserError::Disconnected
            | VhostUserError::PartialMessage
            | VhostUserError::SocketBroken(_),
        ))
        | Ok(()) => Ok(()),
        Err(error) => Err(ServeError::Daemon(error)),
    }
}
