//! The name of a VMM becomes its driver: the only place that knows them all.

use std::sync::Arc;

use kata_config::Config;
use kata_machine::Vmm;
use kata_qemu::Qemu;

/// The driver that the configuration asks for.
pub fn driver(_config: &Config) -> Arc<dyn Vmm> {
    Arc::new(Qemu)
}
