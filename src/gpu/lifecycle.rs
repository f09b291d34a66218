// SPDX-License-Identifier: GPL-2.0

//! Probe, unbind, suspend and shutdown: what the virtio core calls, and in which order a device is
//! set up and stopped.

use super::{
    features,
    Capsets,
    Counters,
    DeviceMappings,
    Features,
    Gpu,
    HostVisible,
    Knobs, //
};
use crate::{
    drm::GpuDriver,
    kapi::{
        drm::{
            self,
            range::RangeAllocator, //
        },
        ida::Ida,
        virtio::{
            self,
            driver::virtio_device_table,
            Binding,
            DeviceId,
            QueueSetup, //
        },
    },
    module_parameters,
    protocol::virtio_gpu::{
        Config,
        DEVICE_ID,
        SHM_ID_HOST_VISIBLE, //
    },
    transport::{
        control::{
            ControlQueue,
            RingQuota, //
        },
        Timeouts,
        Transport, //
    },
};
use core::mem::offset_of;
use kernel::{
    device, new_mutex,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
};

/// How long the device may take, as the module's parameters say.
fn timeouts() -> Timeouts {
    Timeouts {
        response_ms: module_parameters::ack_timeout_ms.value().max(1),
        job_ms: module_parameters::job_timeout_ms.value(),
        grace_ms: module_parameters::job_grace_ms.value(),
    }
}

/// The virtio driver.
pub(crate) struct VirtioGpu;

/// What the driver keeps of a bound device.
#[pin_data]
pub(crate) struct Bound {
    gpu: Arc<Gpu>,
    /// The device nodes. Protects only itself; taken once, when the device goes.
    #[pin]
    registration: Mutex<Option<drm::Registration<GpuDriver>>>,
}

virtio_device_table!(ID_TABLE, [DeviceId::new(DEVICE_ID)]);

/// Stops a device whose probe fails.
struct StopOnError(Option<Arc<Transport>>);

impl Drop for StopOnError {
    fn drop(&mut self) {
        if let Some(transport) = self.0.take() {
            transport.stop();
        }
    }
}

impl VirtioGpu {
    fn set_up(
        vdev: &virtio::Device<device::Core<'_>>,
        binding: &Arc<Binding>,
        queues: QueueSetup<'_>,
    ) -> Result<(Arc<Gpu>, drm::Registration<GpuDriver>)> {
        let mut features = Features::new(vdev)?;
        vdev.unlimit_segments();
        let mapper = features.dma.then(|| binding.mapper().clone());
        let capset_count = if features.virgl {
            vdev.config().read32(offset_of!(Config, num_capsets))?
        } else {
            0
        };
        let host_visible = match vdev.shm_region(SHM_ID_HOST_VISIBLE) {
            Some(region) => {
                let whole = PAGE_SIZE as u64 - 1;
                let end = region.addr.checked_add(region.len);
                if region.len == 0 || (region.addr | region.len) & whole != 0 || end.is_none() {
                    return Err(EINVAL);
                }
                if !vdev.claim_memory(&region) {
                    return Err(EBUSY);
                }
                Some(HostVisible {
                    base: region.addr,
                    ranges: Arc::pin_init(RangeAllocator::new(region.len), GFP_KERNEL)?,
                })
            }
            None => None,
        };

        let counters = Arc::new(Counters::new(), GFP_KERNEL)?;
        let mappings = DeviceMappings::new(mapper.clone(), counters.clone())?;
        let mappings = Arc::new(mappings, GFP_KERNEL)?;
        let transport = Transport::new(binding, timeouts(), mappings.clone())?;
        let mut stop = StopOnError(Some(transport.clone()));
        transport.start(queues, features.event_slots)?;
        features.settle_mirror(vdev)?;

        let control = ControlQueue::from(transport.clone());
        let quota = RingQuota::new()?;
        let capsets = Capsets::query(vdev, &control, &quota, capset_count)?;
        let gpu = Arc::new(
            Gpu {
                transport,
                control,
                features,
                capsets,
                quota,
                resource_ids: Arc::pin_init(Ida::new(), GFP_KERNEL)?,
                context_ids: Arc::pin_init(Ida::new(), GFP_KERNEL)?,
                space_ids: Arc::pin_init(Ida::new(), GFP_KERNEL)?,
                host_visible,
                mapper,
                mappings,
                counters,
                knobs: Knobs::new(),
            },
            GFP_KERNEL,
        )?;
        let drm = drm::Device::<GpuDriver>::new(vdev.parent(), gpu.clone())?;
        let registration = drm::Registration::new(drm)?;

        dev_info!(
            vdev.as_ref(),
            "capability sets {:#x}, blob {}, host-visible {}, context_init {}, mirror {}\n",
            gpu.capsets.mask(),
            features.blob,
            gpu.host_visible.is_some(),
            features.context_init,
            features.mirror.is_some()
        );
        if gpu.bounces() {
            dev_info!(
                vdev.as_ref(),
                "no user memory and no guest blobs: the device sees memory through bounce buffers\n"
            );
        }
        stop.0 = None;
        Ok((gpu, registration))
    }
}

impl virtio::Driver for VirtioGpu {
    type Data = Bound;

    const ID_TABLE: virtio::IdTable = &ID_TABLE;
    const FEATURES: &'static [u32] = features::UNDERSTOOD;

    fn validate(vdev: &virtio::Device<device::Core<'_>>) -> Result {
        features::validate(vdev)
    }

    fn probe(
        vdev: &virtio::Device<device::Core<'_>>,
        binding: &Arc<Binding>,
        queues: QueueSetup<'_>,
    ) -> impl PinInit<Bound, Error> {
        pin_init::pin_init_scope(move || {
            let (gpu, registration) = Self::set_up(vdev, binding, queues)?;
            Ok(try_pin_init!(Bound {
                gpu,
                registration <- new_mutex!(Some(registration), "Bound::registration"),
            }))
        })
    }

    fn unbind(_vdev: &virtio::Device<device::Core<'_>>, this: Pin<&Bound>) {
        // First those who wait for the device, then the nodes, then the device: unplugging waits
        // for ioctls that are under way.
        this.gpu.transport.set_lost();
        let registration = this.registration.lock().take();
        let unplugged = registration.map(drm::Registration::unplug);
        this.gpu.transport.stop();
        // Last those who have mapped memory of the device, as what waits for jobs of this driver
        // ends with the device.
        if let Some(unplugged) = unplugged {
            unplugged.revoke();
        }
    }

    fn config_changed(this: Pin<&Bound>) {
        this.gpu.transport.config_changed();
    }

    #[cfg(CONFIG_PM_SLEEP)]
    fn freeze(vdev: &virtio::Device<device::Core<'_>>, this: Pin<&Bound>) -> Result {
        let gpu = &this.gpu;
        // The contexts and resources that the host has of programs cannot be restored.
        if !gpu.context_ids.is_empty() || !gpu.resource_ids.is_empty() {
            dev_info!(
                vdev.as_ref(),
                "in use, and cannot sleep: its contexts and resources would be lost\n"
            );
            return Err(EBUSY);
        }
        gpu.transport.sleep()
    }

    #[cfg(CONFIG_PM_SLEEP)]
    fn restore(
        _vdev: &virtio::Device<device::Core<'_>>,
        this: Pin<&Bound>,
        queues: QueueSetup<'_>,
    ) -> Result {
        let gpu = &this.gpu;
        gpu.transport.wake_up(queues, gpu.features.event_slots)
    }

    fn reset_prepare(this: Pin<&Bound>) {
        this.gpu.transport.lose_and_reset(c"its bus resets it");
    }

    fn shutdown(_vdev: &virtio::Device<device::Core<'_>>, this: Pin<&Bound>) {
        this.gpu.transport.stop();
    }
}
