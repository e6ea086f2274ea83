//! Tells containerd what happened: each event over its ttrpc socket, in order, tried again over a new connection when
//! one breaks.

use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::{events::task as messages, topics};
use kata_sandbox::lifecycle::ExitStatus;
use kata_sandbox::{Event, Process};
use tokio::sync::mpsc;
use ttrpc::context;

/// How long one event may take, all tries together about three times that.
const LIMIT: Duration = Duration::from_secs(5);
const TRIES: usize = 3;

/// Publishes what comes out of `events` until it ends. Without an address events are logged only.
pub async fn publish(mut events: mpsc::UnboundedReceiver<Event>, address: Option<String>, namespace: String) {
    let mut client = None;
    while let Some(event) = events.recv().await {
        let Some(address) = &address else { continue };
        // As runc's shim: that an exec is forgotten is between it and its client.
        if matches!(&event, Event::Deleted(process, _) if !process.exec.is_empty()) {
            continue;
        }
        let request = forward_request(&event, &namespace);
        let mut last_error = None;
        for _ in 0..TRIES {
            match send(&mut client, address, &namespace, &request).await {
                Ok(()) => {
                    last_error = None;
                    break;
                }
                Err(error) => last_error = Some(error),
            }
        }
        if let Some(error) = last_error {
            tracing::warn!(?event, error, "containerd could not be told");
        }
    }
}

async fn send(
    client: &mut Option<EventsClient>,
    address: &str,
    namespace: &str,
    request: &ForwardRequest,
) -> Result<(), String> {
    let connected = match client.take() {
        Some(connected) => connected,
        None => EventsClient::new(
            Client::connect(&format!("unix://{address}"))
                .await
                .map_err(|error| error.to_string())?,
        ),
    };
    let mut context = context::with_timeout(i64::try_from(LIMIT.as_nanos()).unwrap_or(i64::MAX));
    context.add("containerd-namespace-ttrpc".to_owned(), namespace.to_owned());
    connected
        .forward(context, request)
        .await
        .map_err(|error| error.to_string())?;
    // Kept only when it has just worked.
    *client = Some(connected);
    Ok(())
}

fn forward_request(event: &Event, namespace: &str) -> ForwardRequest {
    let (topic, type_name, value) = encode(event);
    let envelope = Envelope {
        timestamp: MessageField::some(Timestamp::now()),
        namespace: namespace.to_owned(),
        topic: topic.to_owned(),
        event: MessageField::some(Any {
            type_url: format!("containerd.events.{type_name}"),
            value,
            ..Default::default()
        }),
        ..Default::default()
    };
    ForwardRequest {
        envelope: MessageField::some(envelope),
        ..Default::default()
    }
}

fn encode(event: &Event) -> (&'static str, &'static str, Vec<u8>) {
    let pid = std::process::id();
    match event.clone() {
        Event::Created {
            container,
            bundle,
            stdio,
        } => {
            let io = messages::TaskIO {
                stdin: stdio.stdin.map(|path| path.display().to_string()).unwrap_or_default(),
                stdout: stdio.stdout.map(|place| place.to_string()).unwrap_or_default(),
                stderr: stdio.stderr.map(|place| place.to_string()).unwrap_or_default(),
                terminal: stdio.terminal,
                ..Default::default()
            };
            let message = messages::TaskCreate {
                container_id: container,
                bundle: bundle.display().to_string(),
                io: MessageField::some(io),
                pid,
                ..Default::default()
            };
            told(topics::TASK_CREATE_EVENT_TOPIC, &message)
        }
        Event::Started(Process { container, exec }) if exec.is_empty() => {
            let message = messages::TaskStart {
                container_id: container,
                pid,
                ..Default::default()
            };
            told(topics::TASK_START_EVENT_TOPIC, &message)
        }
        Event::Started(Process { container, exec }) => {
            let message = messages::TaskExecStarted {
                container_id: container,
                exec_id: exec,
                pid,
                ..Default::default()
            };
            told(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &message)
        }
        Event::ExecAdded(Process { container, exec }) => {
            let message = messages::TaskExecAdded {
                container_id: container,
                exec_id: exec,
                ..Default::default()
            };
            told(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &message)
        }
        Event::OutOfMemory { container } => {
            let message = messages::TaskOOM {
                container_id: container,
                ..Default::default()
            };
            told(topics::TASK_OOM_EVENT_TOPIC, &message)
        }
        Event::Exited(process, status) => {
            let message = messages::TaskExit {
                id: id_of(&process),
                container_id: process.container,
                pid,
                exit_status: status.code,
                exited_at: MessageField::some(timestamp(status)),
                ..Default::default()
            };
            told(topics::TASK_EXIT_EVENT_TOPIC, &message)
        }
        Event::Deleted(process, status) => {
            let message = messages::TaskDelete {
                id: id_of(&process),
                container_id: process.container,
                pid,
                exit_status: status.code,
                exited_at: MessageField::some(timestamp(status)),
                ..Default::default()
            };
            told(topics::TASK_DELETE_EVENT_TOPIC, &message)
        }
        Event::Paused { container } => {
            let message = messages::TaskPaused {
                container_id: container,
                ..Default::default()
            };
            told(topics::TASK_PAUSED_EVENT_TOPIC, &message)
        }
        Event::Resumed { container } => {
            let message = messages::TaskResumed {
                container_id: container,
                ..Default::default()
            };
            told(topics::TASK_RESUMED_EVENT_TOPIC, &message)
        }
    }
}

/// The id of a process as containerd's events name it: the exec's, or the container's for its init.
fn id_of(process: &Process) -> String {
    if process.exec.is_empty() {
        process.container.clone()
    } else {
        process.exec.clone()
    }
}

/// When a process ended, as a protobuf timestamp.
pub fn timestamp(status: ExitStatus) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(status.at_unix_nanos / 1_000_000_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(status.at_unix_nanos % 1_000_000_000).unwrap_or(0),
        ..Default::default()
    }
}

/// Topic, type and bytes of an event.
fn told<M: Message>(topic: &'static str, message: &M) -> (&'static str, &'static str, Vec<u8>) {
    // Fails only for messages with missing required fields, which proto3 does not have.
    (topic, M::NAME, message.write_to_bytes().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_exit_names_exec_and_container() {
        let process = Process {
            container: "c".into(),
            exec: "e".into(),
        };
        let status = ExitStatus {
            code: 3,
            at_unix_nanos: 5_000_000_007,
        };
        let request = forward_request(&Event::Exited(process, status), "ns");
        let envelope = request.envelope.into_option().expect("envelope");
        assert_eq!(
            (envelope.topic.as_str(), envelope.namespace.as_str()),
            ("/tasks/exit", "ns")
        );
        let any = envelope.event.into_option().expect("event");
        assert_eq!(any.type_url, "containerd.events.TaskExit");
        let exit = messages::TaskExit::parse_from_bytes(&any.value).expect("decode");
        assert_eq!(
            (exit.id.as_str(), exit.container_id.as_str(), exit.exit_status),
            ("e", "c", 3)
        );
        assert_eq!((exit.exited_at.seconds, exit.exited_at.nanos), (5, 7));
    }
}
