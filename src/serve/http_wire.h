// Wire: a client's connection as a stream of bytes, over TCP or a Unix socket, in the clear or in
// TLS. Everything of it runs on the socket's executor, a strand; a read and a write may be in
// progress at a time. Of errors and ends only that they are one is told.
#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/system/error_code.hpp>

namespace boost::asio::ssl {
class context;
}

namespace lorry {

using TlsContext = boost::asio::ssl::context;

// TLS 1.2 or later with this certificate (a PEM chain) and its key (PEM, not encrypted). Throws
// Error(invalid_argument) naming the file.
std::shared_ptr<TlsContext> make_tls(const std::string& certfile, const std::string& keyfile);

class Wire {
 public:
  using Socket = boost::asio::generic::stream_protocol::socket;

  // `tls`: null for none; outlives the wire.
  Wire(Socket socket, TlsContext* tls);
  ~Wire();

  Socket::executor_type executor() { return socket_.get_executor(); }
  // Before all else; true where there is no TLS.
  boost::asio::awaitable<bool> handshake();
  // How many bytes came; 0: the end, an error or cancel(). After an end there is nothing but that.
  boost::asio::awaitable<size_t> read(char* data, size_t size);
  // How many bytes the system took at once, without a wait. Says nothing of errors. In TLS none.
  size_t try_write(std::string_view bytes);
  // False: the client is gone, or cancel().
  boost::asio::awaitable<bool> write(std::string_view bytes);
  // Says that nothing more will be sent.
  boost::asio::awaitable<void> shutdown();
  // What arrives after shutdown(), whatever it is, as read().
  boost::asio::awaitable<size_t> read_raw(char* data, size_t size);
  // Ends what is in progress.
  void cancel();

 private:
  struct Tls;
  size_t received(const boost::system::error_code& ec, size_t n);

  Socket socket_;
  std::unique_ptr<Tls> tls_;
  bool ended_ = false;
};

}  // namespace lorry
