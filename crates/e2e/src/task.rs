//! A sandbox process spoken to as containerd speaks to it, for what no client of containerd can be made to ask.

use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, DeleteRequest, ShutdownRequest, StartRequest, WaitRequest};
use containerd_shim_protos::shim_async::TaskClient;
use containerd_shim_protos::types::mount::Mount;
use ttrpc::r#async::Client;
use ttrpc::context::{self, Context};

use crate::lab::Lab;
use crate::places;

/// A sandbox process and the container that it was started for.
#[derive(Debug)]
pub struct Task<'lab> {
    lab: &'lab Lab,
    id: String,
    bundle: std::path::PathBuf,
    address: String,
}

/// How long a call may take.
const LIMIT: Duration = Duration::from_secs(60);

impl<'lab> Task<'lab> {
    /// Starts the sandbox process for a bundle.
    ///
    /// # Panics
    /// When it does not start.
    #[track_caller]
    pub fn start_sandbox(lab: &'lab Lab, id: &str, bundle: &Path) -> Self {
        let shim = lab
            .command(places::ours("containerd-shim-kata-v2"))
            .args(["-namespace", "e2e", "-id", id]);
        let started = shim
            .args(["-address", "", "-bundle"])
            .arg(bundle)
            .arg("start")
            .run()
            .ok();
        let address = started.text().trim().trim_start_matches("unix://").to_owned();
        let (id, bundle) = (id.to_owned(), bundle.to_owned());
        Self {
            lab,
            id,
            bundle,
            address,
        }
    }

    /// Creates the container with this root file system, runs it to its end and deletes it; answers its exit code.
    ///
    /// # Errors
    /// What the sandbox process answered.
    pub fn run(&self, fs_type: &str, source: &Path, options: &[&str]) -> Result<u32, String> {
        let rootfs = Mount {
            type_: fs_type.to_owned(),
            source: source.display().to_string(),
            options: options.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let create = CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            rootfs: vec![rootfs],
            ..Default::default()
        };
        let id = || self.id.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        let socket = format!("unix://{}", self.lab.outside(&self.address).display());
        let lived = runtime.block_on(async {
            let client = TaskClient::new(Client::connect(&socket).await?);
            client.create(limit(), &create).await?;
            client
                .start(
                    limit(),
                    &StartRequest {
                        id: id(),
                        ..Default::default()
                    },
                )
                .await?;
            let ended = client
                .wait(
                    limit(),
                    &WaitRequest {
                        id: id(),
                        ..Default::default()
                    },
                )
                .await?;
            client
                .delete(
                    limit(),
                    &DeleteRequest {
                        id: id(),
                        ..Default::default()
                    },
                )
                .await?;
            Ok::<_, ttrpc::Error>(ended.exit_status)
        });
        lived.map_err(|error| error.to_string())
    }

    /// Tells the sandbox process to end.
    pub fn shut_down(self) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        let socket = format!("unix://{}", self.lab.outside(&self.address).display());
        runtime.block_on(async {
            if let Ok(client) = Client::connect(&socket).await {
                let request = ShutdownRequest {
                    id: self.id.clone(),
                    ..Default::default()
                };
                // It ends before or after it has answered.
                let _ = TaskClient::new(client).shutdown(limit(), &request).await;
            }
        });
    }
}

fn limit() -> Context {
    context::with_duration(LIMIT)
}
