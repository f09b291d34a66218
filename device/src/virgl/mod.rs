// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! OpenGL for contexts of Mesa's virgl, by virglrenderer, if `--virgl-renderer` asks for it.
//!
//! The library is called on one thread, in the order in which the control queue's commands come.
//! That thread takes no lock of the device, so anyone may wait for it.

mod library;
mod renderer;

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::Mutex;
use std::time::Duration;

use virtgpu_protocol::virtio_gpu::response;

use crate::options::capset::Capset;
use crate::queues::control::Response;
pub(crate) use library::CreateArgs;
pub(crate) use renderer::Renderer;

/// How often the library is asked for fences while there are any; it does not tell by itself.
const POLL: Duration = Duration::from_millis(1);

type Call = Box<dyn FnOnce(&mut Renderer) + Send>;

/// The thread that calls virglrenderer.
#[derive(Debug)]
pub(crate) struct Virgl {
    calls: Mutex<Sender<Call>>,
}

/// The response to a command that the renderer works on.
#[derive(Debug)]
pub(crate) struct Rendering(Receiver<Response>);

impl Rendering {
    /// Waits for it.
    pub(crate) fn wait(self) -> Response {
        let response = self.0.recv();
        response.unwrap_or_else(|_| Response::plain(response::ERR_UNSPEC))
    }
}

impl Virgl {
    /// Starts the renderer; returns its capability sets, too.
    pub(crate) fn start() -> std::io::Result<(Self, Vec<Capset>)> {
        let (calls, queue) = mpsc::channel::<Call>();
        let (started, start) = mpsc::channel();
        std::thread::Builder::new()
            .name("virgl".into())
            .spawn(move || match Renderer::new() {
                Ok(renderer) => {
                    let _ = started.send(Ok(renderer.capsets()));
                    serve(renderer, &queue);
                }
                Err(error) => drop(started.send(Err(error))),
            })?;
        let capsets = start
            .recv()
            .map_err(|error| error.to_string())
            .and_then(|result| result)
            .map_err(|error| std::io::Error::other(format!("virglrenderer: {error}")))?;
        let calls = Mutex::new(calls);
        Ok((Self { calls }, capsets))
    }

    fn send(&self, call: Call) {
        let calls = self.calls.lock();
        let calls = calls.unwrap_or_else(std::sync::PoisonError::into_inner);
        // Who waits for a thread that is gone sees that its own channel is.
        let _ = calls.send(call);
    }

    /// Calls `f` on the renderer's thread and waits for what it returns.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Renderer) -> Result<T, u32> + Send + 'static,
    ) -> Result<T, u32> {
        let (done, result) = mpsc::channel();
        self.send(Box::new(move |renderer| drop(done.send(f(renderer)))));
        result.recv().unwrap_or(Err(response::ERR_UNSPEC))
    }

    /// Calls `f` there later, and responds when it has returned.
    pub(crate) fn begin(
        &self,
        f: impl FnOnce(&mut Renderer) -> Result<(), u32> + Send + 'static,
    ) -> Rendering {
        let (done, response) = mpsc::channel();
        self.send(Box::new(move |renderer| {
            let response = f(renderer).map_or_else(Response::plain, |()| Response::ok());
            let _ = done.send(response);
        }));
        Rendering(response)
    }

    /// Executes the commands of a context later, and responds when all is drawn.
    pub(crate) fn submit(&self, ctx: u32, commands: Vec<u32>) -> Rendering {
        let (done, response) = mpsc::channel();
        self.send(Box::new(move |renderer| {
            match renderer.submit(ctx, commands) {
                Ok(()) => renderer.fence(ctx, done),
                Err(code) => drop(done.send(Response::plain(code))),
            }
        }));
        Rendering(response)
    }

    /// Destroys everything; returns once nothing touches guest memory any more.
    pub(crate) fn reset(&self) {
        let _ = self.call(|renderer| {
            renderer.reset();
            Ok(())
        });
    }
}

/// The thread's life.
fn serve(mut renderer: Renderer, queue: &Receiver<Call>) {
    loop {
        let call = match renderer.is_drawing() {
            true => queue.recv_timeout(POLL),
            false => queue.recv().map_err(RecvTimeoutError::from),
        };
        match call {
            Ok(call) => call(&mut renderer),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if renderer.is_drawing() {
            renderer.poll();
        }
    }
}
