//! Containers with a terminal: in the foreground of one, and with the terminal handed over on a socket.

use kata_e2e::against_both;
use kata_e2e::bundle::Bundle;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::runtime::{Kind, Runtime};
use kata_e2e::terminal::{ConsoleSocket, Terminal};

against_both!(
    an_interactive_run_behaves_like_a_shell,
    a_console_socket_gets_the_terminal,
    a_terminal_needs_a_socket_to_be_created
);

fn lab() -> &'static Lab {
    static LAB: Shared<Lab> = Shared::new();
    LAB.get(Lab::open)
}

fn bundle(kind: Kind, what: &str) -> (Bundle, String) {
    let id = format!("tty-{kind:?}-{what}").to_lowercase();
    let bundle = Bundle::args(lab(), &id, &["sh"]).edit(|spec| spec["process"]["terminal"] = true.into());
    (bundle, id)
}

fn an_interactive_run_behaves_like_a_shell(kind: Kind) {
    let (bundle, id) = bundle(kind, "run");
    let (mut terminal, end) = Terminal::pair();
    terminal.resize(40, 100);
    let running = Runtime::new(kind, lab()).run(&bundle, &id).start_on(&end);
    drop(end);

    terminal.expect_size(40, 100);
    terminal.type_in("tty; [ -c /dev/console ] && echo con''sole\n");
    terminal.expect("/dev/");
    terminal.expect("console");
    terminal.resize(50, 120);
    terminal.expect_size(50, 120);
    terminal.interrupt_a_program();
    terminal.type_in("exit 4\n");

    running.finish().exit(4);
}

fn a_console_socket_gets_the_terminal(kind: Kind) {
    let (bundle, id) = bundle(kind, "socket");
    let runtime = Runtime::new(kind, lab());
    let socket = ConsoleSocket::listen(lab(), &id);

    let create = runtime.verb("create").arg("--bundle").arg(bundle.dir());
    create.arg("--console-socket").arg(socket.path()).arg(&id).run().ok();
    let mut terminal = socket.receive();
    terminal.resize(22, 77);
    runtime.start(&id).ok();

    terminal.expect_size(22, 77);
    terminal.interrupt_a_program();
    terminal.type_in("exit\n");
    runtime.await_status(&id, "stopped");
    runtime.delete(&id).ok();
}

fn a_terminal_needs_a_socket_to_be_created(kind: Kind) {
    let (bundle, id) = bundle(kind, "none");
    Runtime::new(kind, lab())
        .create(&bundle, &id)
        .failed()
        .complains("console socket");
    Runtime::new(kind, lab()).verb("state").arg(&id).run().failed();
}
