//! A part of a conversation.

use serde::{Deserialize, Serialize};

/// What somebody said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who: `system`, `user`, `assistant`.
    pub role: String,
    /// What.
    pub content: String,
}
