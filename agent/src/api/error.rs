use axum::{
    Json,
    extract::rejection::{JsonRejection, PathRejection, QueryRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

/// What sort of failure it is; the status of the answer and the exit code of the command follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Nothing goes by that name or id.
    NotFound,
    /// It exists already, is in use, or overlaps with something that exists.
    Conflict,
    /// The request can never work as it is written.
    Invalid,
    /// It cannot be done now; the same request may work later.
    Unavailable,
    /// No free number is left: addresses, subnets or VNIs.
    Exhausted,
    /// The caller, or this node, may not do that.
    Forbidden,
    /// A fault of the agent or of the kernel beneath it.
    Internal,
}

impl ErrorKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Self; 7] = [
        Self::NotFound,
        Self::Conflict,
        Self::Invalid,
        Self::Unavailable,
        Self::Exhausted,
        Self::Forbidden,
        Self::Internal,
    ];

    /// The status of an HTTP answer of this kind.
    pub fn http_status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Exhausted => StatusCode::INSUFFICIENT_STORAGE,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The exit code of a command that failed this way: 1 failed, 2 usage, 3 not found, 4 conflict.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unavailable | Self::Exhausted | Self::Forbidden | Self::Internal => 1,
        }
    }
}

/// A failure as the API says it: one sentence that names the object and, where there is one, a way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What sort of failure it is.
    pub kind: ErrorKind,
    /// What was tried, on which object, why it failed, and what state things are in now.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The failure.
    pub error: ApiError,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(message: impl Into<String>) -> Self {
            Self { kind: ErrorKind::$kind, message: message.into(), help: None }
        }
    )*};
}

impl ApiError {
    constructors! {
        /// Nothing goes by that name or id.
        not_found => NotFound;
        /// It exists already, is in use, or overlaps with something that exists.
        conflict => Conflict;
        /// The request can never work as it is written.
        invalid => Invalid;
        /// It cannot be done now; the same request may work later.
        unavailable => Unavailable;
        /// No free number is left.
        exhausted => Exhausted;
        /// The caller, or this node, may not do that.
        forbidden => Forbidden;
        /// A fault of the agent or of the kernel beneath it.
        internal => Internal;
    }

    /// Adds the way out.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.kind.http_status(), Json(ErrorBody { error: self })).into_response()
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        Self::invalid(format!(
            "the body of the request cannot be read: {}",
            rejection.body_text()
        ))
        .with_help("GET /v1/openapi.json describes every request")
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(format!(
            "the query of the request cannot be read: {}",
            rejection.body_text()
        ))
        .with_help("GET /v1/openapi.json describes every request")
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::invalid(format!(
            "the path of the request cannot be read: {}",
            rejection.body_text()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_answers_with_its_status_and_the_documented_body() {
        let response = ApiError::not_found("no network is called `app`")
            .with_help("list them")
            .into_response();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
        assert_eq!(
            std::str::from_utf8(&body).unwrap(),
            r#"{"error":{"kind":"not_found","message":"no network is called `app`","help":"list them"}}"#
        );
    }

    #[test]
    fn every_kind_has_the_documented_status_and_exit_code() {
        let table: Vec<_> = ErrorKind::ALL
            .iter()
            .map(|kind| (kind.http_status().as_u16(), kind.exit_code()))
            .collect();
        assert_eq!(
            table,
            [
                (404, 3),
                (409, 4),
                (400, 2),
                (503, 1),
                (507, 1),
                (403, 1),
                (500, 1)
            ]
        );
    }
}
