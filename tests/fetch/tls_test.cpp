// Certificates, against a server that makes its own.
#include <atomic>
#include <csignal>
#include <memory>
#include <thread>

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fetch/fake_server.h"
#include "fetch/http_client.h"
#include "fetch/support.h"

namespace lorry {
namespace {

using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;
using Context = std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)>;

// For 127.0.0.1, valid for an hour, signed by itself.
Certificate make_certificate(EVP_PKEY* key) {
  Certificate certificate(X509_new(), X509_free);
  X509_set_version(certificate.get(), 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 3600);
  X509_set_pubkey(certificate.get(), key);
  X509_NAME* name = X509_get_subject_name(certificate.get());
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>("test"), -1, -1, 0);
  X509_set_issuer_name(certificate.get(), name);
  X509_EXTENSION* host =
      X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, "IP:127.0.0.1");
  EXPECT_EQ(X509_add_ext(certificate.get(), host, -1), 1);
  X509_EXTENSION_free(host);
  EXPECT_GT(X509_sign(certificate.get(), key, EVP_sha256()), 0);
  return certificate;
}

// Answers each request with the same text.
class Tls : public FolderTest {
 protected:
  Tls()
      : key_(EVP_EC_gen("P-256"), EVP_PKEY_free),
        certificate_(make_certificate(key_.get())),
        context_(SSL_CTX_new(TLS_server_method()), SSL_CTX_free) {
    std::signal(SIGPIPE, SIG_IGN);  // a client that refuses the certificate goes at once
    EXPECT_EQ(SSL_CTX_use_certificate(context_.get(), certificate_.get()), 1);
    EXPECT_EQ(SSL_CTX_use_PrivateKey(context_.get(), key_.get()), 1);
    std::FILE* file = std::fopen(path("ca.pem").c_str(), "w");
    EXPECT_EQ(PEM_write_X509(file, certificate_.get()), 1);
    std::fclose(file);
    url_ = fmt::format("https://127.0.0.1:{}/x", listener_.port);
  }
  ~Tls() override {
    shutdown(listener_.fd, SHUT_RDWR);
    if (thread_.joinable()) thread_.join();
    close(listener_.fd);
  }

  void start(const std::string& answer) {
    thread_ = std::thread([this, answer] {
      for (int fd = -1; (fd = accept(listener_.fd, nullptr, nullptr)) >= 0; close(fd)) {
        const std::unique_ptr<SSL, decltype(&SSL_free)> ssl(SSL_new(context_.get()), SSL_free);
        SSL_set_fd(ssl.get(), fd);
        char request[4096];
        if (SSL_accept(ssl.get()) != 1) continue;
        if (SSL_read(ssl.get(), request, sizeof request) <= 0) continue;
        ++n_requests_;
        SSL_write(ssl.get(), answer.data(), static_cast<int>(answer.size()));
        SSL_shutdown(ssl.get());
      }
    });
  }
  FetchResponse get() {
    return HttpClient(network_, deadline_)
        .send({.url = url_, .secret_headers = {{"Authorization", "Bearer hf_secret"}}});
  }

  Key key_;
  Certificate certificate_;
  Context context_;
  LocalListener listener_;
  std::string url_;
  std::thread thread_;
  std::atomic<int> n_requests_{0};
  FakeServer plain_;  // also sees to it that no proxy is asked
  NetworkOptions network_ = fast_network();
  Deadline deadline_{"it", std::chrono::seconds(20), nullptr};
};

TEST_F(Tls, a_certificate_that_nobody_signed_is_refused_before_a_request) {
  start("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
  const FetchResponse response = get();
  EXPECT_THAT(response.failure, testing::HasSubstr("certificate"));
  EXPECT_FALSE(response.retryable);
  EXPECT_EQ(n_requests_, 0);
}

TEST_F(Tls, a_certificate_of_the_given_file_is_taken) {
  network_.ca_file = path("ca.pem");
  start("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
  const FetchResponse response = get();
  EXPECT_EQ(response.failure, "");
  EXPECT_EQ(response.body, "ok");
}

TEST_F(Tls, F7_a_redirect_from_https_to_http_is_not_followed) {
  plain_.start([](const ServerRequest&) { return ServerReply{}; });
  network_.ca_file = path("ca.pem");
  start("HTTP/1.1 302 Found\r\nLocation: " + plain_.origin() + "/y\r\nContent-Length: 0\r\n\r\n");
  EXPECT_EQ(error_of([&] { get(); }).code(), Code::unavailable);
  EXPECT_EQ(plain_.requests().size(), 0U);
}

}  // namespace
}  // namespace lorry
