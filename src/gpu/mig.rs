//! The one call of NVML that its wrapper does not have: which GPU instance a MIG device is.

use nvml_wrapper::Device;

/// Id of the GPU instance, by which GPM and the lists of processes name it; `None` where the driver does not tell.
#[must_use]
pub fn instance_id(device: &Device<'_>) -> Option<u32> {
    let function = device.nvml().lib().nvmlDeviceGetGpuInstanceId.as_ref().ok()?;
    let mut id = 0;
    // SAFETY: the handle is used at once, while `device` lives, and NVML does not keep it.
    let handle = unsafe { device.handle() };
    // SAFETY: NVML: a handle of its own and a place for one number, written before the call returns.
    let result = unsafe { function(handle, &raw mut id) };
    (result == 0).then_some(id)
}
