//! The contract, held by `backstamp dev` over HTTP.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use backstamp_tests::contract_tests;
use backstamp_tests::stack::Stack;

async fn stack() -> &'static Stack {
    Stack::shared_dev().await
}

contract_tests!(super::stack);

#[tokio::test]
async fn keys_are_opened_by_a_token_that_only_the_owner_of_the_data_can_read() {
    let stack = stack().await;
    let environment = stack.environment();
    let data = environment.iter().find(|(name, _)| *name == "BACKSTAMP_DATA").unwrap().1;
    let tokens: Vec<_> = fs::read_dir(data)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().contains("token"))
        .collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);

    // Without it, or with another's, no key is made.
    let other = Stack::dev().await;
    let mixed = [environment[1], other.environment()[0]];
    let output = backstamp_tests::program::Program::run(&["keys", "list"], &mixed).await;
    assert!(!output.status.success() && output.stdout.is_empty(), "{output}");
    let nowhere = [environment[1], ("BACKSTAMP_DATA", "/nowhere")];
    let output = backstamp_tests::program::Program::run(&["keys", "list"], &nowhere).await;
    assert!(!output.status.success() && output.stderr.contains("BACKSTAMP_DATA"), "{output}");
}
