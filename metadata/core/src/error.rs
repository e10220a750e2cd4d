//! Why applying a command ends without a plain answer.

use holdfast_store::StoreError;
use holdfast_wire::metadata::MetadataError;
use holdfast_wire::namespace::NamespaceError;

/// Why there is no answer of the usual kind. Whatever the command had begun to change is dropped.
#[derive(Debug)]
pub(crate) enum Fail {
    /// An answer, too: the caller is refused. Of a mutation it is kept like any other answer.
    Refused(MetadataError),
    /// An answer that is not kept: nothing happened, and a repetition may fare better.
    Unkept(MetadataError),
    /// Not now: something that will end by itself is in the way. The leader asks again then.
    Wait,
    /// Our own mistake, or a broken table: this server must not go on.
    Broken(String),
}

/// Result of applying something.
pub(crate) type Applied<T> = Result<T, Fail>;

impl From<NamespaceError> for Fail {
    fn from(error: NamespaceError) -> Self {
        Self::Refused(MetadataError::Namespace(error))
    }
}

impl From<StoreError> for Fail {
    fn from(error: StoreError) -> Self {
        let source = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
        Self::Broken(format!("{error}{source}"))
    }
}

/// Our own state must be so; if it is not, this server halts and says where.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::error::Fail::Broken(format!($($message)+)));
        }
    };
}
pub(crate) use ensure;
