// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Two devices in a guest: Linux's driver shows pictures on one, this one runs jobs on the other.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use drm::buffer::DrmFourcc;
use drm::control::{
    connector, crtc, dumbbuffer, framebuffer, Device as _, Event, Mode, PageFlipFlags,
};
use virtgpu_client::{compute, Bytes, Device, Exec, Mapping, RegisterOptions};

use crate::drivers::{self, Driver};
use crate::outcome::{Outcome, Result, Status};

/// A virtio-gpu device.
struct Gpu {
    /// Name on the virtio bus.
    name: String,
    /// Folder of the PCI device.
    pci: PathBuf,
}

impl Gpu {
    /// Both devices, the one with displays first: its PCI class is that of displays.
    fn both() -> Result<[Self; 2]> {
        let mut gpus = Vec::new();
        for entry in fs::read_dir("/sys/bus/virtio/devices")?.flatten() {
            let folder = fs::canonicalize(entry.path())?;
            if fs::read_to_string(folder.join("device"))?.trim() != "0x0010" {
                continue;
            }
            let pci = folder.parent().ok_or("a device without parent")?;
            let class = fs::read_to_string(pci.join("class"))?;
            let gpu = Self {
                name: entry.file_name().to_string_lossy().into_owned(),
                pci: pci.to_path_buf(),
            };
            gpus.push((!class.starts_with("0x03"), gpu));
        }
        gpus.sort_by_key(|(other, _)| *other);
        match <[_; 2]>::try_from(gpus) {
            Ok([(false, display), (true, compute)]) => Ok([display, compute]),
            _ => Err("not one device with displays and one without".into()),
        }
    }

    /// The driver that serves it.
    fn driver(&self) -> Result<String> {
        let link = fs::read_link(self.pci.join(&self.name).join("driver"))?;
        let name = link.file_name().ok_or("a driver without name")?;
        Ok(name.to_string_lossy().into_owned())
    }

    /// Its node in /dev/dri: `card` or `renderD`, and a number.
    fn node(&self, kind: &str) -> Result<PathBuf> {
        let folder = self.pci.join(&self.name).join("drm");
        // DRM devices belong to the PCI device with some drivers, to the virtio device with others.
        let folders = [folder, self.pci.join("drm")];
        for folder in folders.iter().filter(|folder| folder.exists()) {
            for entry in fs::read_dir(folder)?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with(kind) {
                    return Ok(Path::new("/dev/dri").join(name));
                }
            }
        }
        Err(format!("{} has no {kind}", self.name).into())
    }
}

/// Loads both drivers, gives each its device as docs/install.md says, and runs the tests.
pub(crate) fn run() -> Result<Vec<Outcome>> {
    // Linux's takes both, as it is the first one loaded.
    drivers::load(Driver::Linux)?;
    drivers::load(Driver::Ours)?;
    let [display, compute] = Gpu::both()?;
    let bus = Path::new("/sys/bus/virtio/drivers");
    fs::write(bus.join("virtio_gpu/unbind"), &compute.name)?;
    fs::write(bus.join("virtgpu_userptr/bind"), &compute.name)?;

    let cases: [(&str, &dyn Fn() -> Result); 4] = [
        ("each_has_its_device", &|| {
            each_has_its_device(&display, &compute)
        }),
        ("picture", &|| Screen::new(&display)?.show(1)),
        ("job", &|| jobs(&compute, &AtomicBool::new(true)).map(drop)),
        ("both_at_a_time", &|| both_at_a_time(&display, &compute)),
    ];
    let mut outcomes = Vec::new();
    for (name, case) in cases {
        let status = match case() {
            Ok(()) => Status::Pass(String::new()),
            Err(error) => Status::Fail(error.to_string()),
        };
        outcomes.push(Outcome::new(name, status));
    }
    // One goes while the other stays.
    let status = match drivers::unload(Driver::Ours).and_then(|()| Screen::new(&display)?.show(1)) {
        Ok(()) => Status::Pass(String::new()),
        Err(error) => Status::Fail(error.to_string()),
    };
    outcomes.push(Outcome::new("picture_without_this_driver", status));
    Ok(outcomes)
}

fn each_has_its_device(display: &Gpu, compute: &Gpu) -> Result {
    let drivers = (display.driver()?, compute.driver()?);
    if drivers != ("virtio_gpu".into(), "virtgpu_userptr".into()) {
        return Err(format!("the drivers are {drivers:?}").into());
    }
    // Programs tell them apart by what they can do, not by their DRM name, which is the same.
    let modes = |gpu: &Gpu| -> Result<u32> {
        Ok(Device::open_path(gpu.node("renderD")?)?.userptr_modes()?)
    };
    match (modes(display)?, modes(compute)?) {
        (0, 1..) => Ok(()),
        modes => Err(format!("user memory modes {modes:?}").into()),
    }
}

/// Adds to memory of this process, again and again until told to stop, once at least; returns how
/// often.
fn jobs(compute: &Gpu, stop: &AtomicBool) -> Result<u32> {
    let device = Device::open_path(compute.node("renderD")?)?;
    device.context_init_compute(1)?;
    let memory = Mapping::anonymous(1 << 20)?;
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let mut times = 0;
    loop {
        let mut job = compute::Stream::new();
        job.add_u32(userptr.at(0), 1 << 20, 1);
        Exec::new(job.as_bytes())
            .buffers(&[userptr.handle()])
            .run(&device)?;
        times += 1;
        for place in [0, (1 << 20) - 4] {
            let found = memory.read_u32(place);
            if found != times {
                return Err(format!("word at {place} is {found}, not {times}").into());
            }
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(times);
        }
    }
}

fn both_at_a_time(display: &Gpu, compute: &Gpu) -> Result {
    let stop = AtomicBool::new(false);
    let screen = Screen::new(display)?;
    let (shown, done) = std::thread::scope(|scope| {
        // Errors are not for sending to other threads.
        let jobs = scope.spawn(|| jobs(compute, &stop).map_err(|error| error.to_string()));
        let shown = screen.show(100);
        stop.store(true, Ordering::Relaxed);
        (shown, jobs.join())
    });
    shown?;
    let times = done.map_err(|_| "the thread with the jobs panicked")??;
    println!("# 100 pictures and {times} jobs");
    Ok(())
}

/// The primary node of a device with displays.
struct Card(File);

impl AsFd for Card {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl drm::Device for Card {}
impl drm::control::Device for Card {}

/// The first display that is connected, in its preferred mode, with two pictures to show in turns.
struct Screen {
    card: Card,
    crtc: crtc::Handle,
    connector: connector::Handle,
    mode: Mode,
    pictures: [(dumbbuffer::DumbBuffer, framebuffer::Handle); 2],
}

impl Screen {
    fn new(gpu: &Gpu) -> Result<Self> {
        let node = gpu.node("card")?;
        let card = Card(File::options().read(true).write(true).open(node)?);
        let resources = card.resource_handles()?;
        let mut connected = None;
        for &handle in resources.connectors() {
            let info = card.get_connector(handle, true)?;
            if info.state() == connector::State::Connected {
                connected = info.modes().first().map(|mode| (handle, *mode));
                break;
            }
        }
        let (connector, mode) = connected.ok_or("no display is connected")?;
        let &crtc = resources.crtcs().first().ok_or("no CRTC")?;
        let picture = |colour: u8| -> Result<_> {
            let (width, height) = mode.size();
            let size = (u32::from(width), u32::from(height));
            let mut buffer = card.create_dumb_buffer(size, DrmFourcc::Xrgb8888, 32)?;
            card.map_dumb_buffer(&mut buffer)?.as_mut().fill(colour);
            let frame = card.add_framebuffer(&buffer, 24, 32)?;
            Ok((buffer, frame))
        };
        let pictures = [picture(0x40)?, picture(0xc0)?];
        Ok(Self {
            crtc,
            connector,
            mode,
            pictures,
            card,
        })
    }

    /// Sets the mode, then shows pictures in turns, each when the one before is there.
    fn show(&self, times: usize) -> Result {
        let first = self.pictures[0].1;
        self.card.set_crtc(
            self.crtc,
            Some(first),
            (0, 0),
            &[self.connector],
            Some(self.mode),
        )?;
        let shown = self.card.get_crtc(self.crtc)?;
        if shown.framebuffer() != Some(first) || shown.mode() != Some(self.mode) {
            return Err("the mode was not set".into());
        }
        for time in 1..=times {
            let frame = self.pictures[time % 2].1;
            self.card
                .page_flip(self.crtc, frame, PageFlipFlags::EVENT, None)?;
            let flipped = self
                .card
                .receive_events()?
                .any(|e| matches!(e, Event::PageFlip(_)));
            if !flipped || self.card.get_crtc(self.crtc)?.framebuffer() != Some(frame) {
                return Err(format!("picture {time} is not shown").into());
            }
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        for (buffer, frame) in self.pictures {
            // Closing the file would do it, too.
            let _ = self.card.destroy_framebuffer(frame);
            let _ = self.card.destroy_dumb_buffer(buffer);
        }
    }
}
