//! Certificates for those who have none yet.

use shoal_proto::wire::raw::enrolment_server::Enrolment;
use shoal_proto::wire::raw::{EnrolRequest, Papers};
use tonic::{Request, Response, Status};

use super::Rim;
use crate::door::Peer;
use crate::harbour::{Inbound, Paper, Stranger};

pub(super) struct Enrolling(Rim);

impl Enrolling {
    pub(super) fn new(rim: Rim) -> Self {
        Self(rim)
    }
}

#[tonic::async_trait]
impl Enrolment for Enrolling {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<Papers>, Status> {
        let address = request.extensions().get::<Peer>().map(|peer| peer.address.ip());
        let EnrolRequest { token_id, token_secret, name, request_pem } = request.into_inner();
        let stranger = Stranger { address, token_id, token_secret, name, request_pem };
        let papers = self.0.ask(|reply| Inbound::Enrol { stranger, reply }).await?;
        papers.map(told).map_err(Status::permission_denied)
    }
}

pub(super) fn told(paper: Paper) -> Response<Papers> {
    let Paper { certificate_pem, ca_pem } = paper;
    Response::new(Papers { certificate_pem, ca_pem })
}
