// The connection to play.py: opened anew whenever it is lost, and given up as lost once it has fallen silent.
// Knows nothing of games. The server says every second that it is there, whatever the game does.

const SILENT_S = 10; // a network that is gone ends no connection, it only brings nothing any more
const LOST = 1006; // what browsers give for a connection that broke

export class Connection {
  // address: gives where to.  received: takes a message, an object or an ArrayBuffer.  closed: takes the code, and gives
  // after how many ms to try again, null for not by itself.
  constructor({ address, received, opened, closed }) {
    Object.assign(this, { address, received, opened, closed });
    this.socket = null; // of any state
    this.silent = 0; // seconds in which this page did run and nothing came
    setInterval(() => this.watch(), 1000);
  }

  get isOpen() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  open() {
    const socket = new WebSocket(this.address());
    this.socket = socket;
    this.silent = 0;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.opened();
    socket.onmessage = ({ data }) => {
      this.silent = 0;
      this.received(typeof data === "string" ? JSON.parse(data) : data);
    };
    socket.onclose = ({ code }) => this.lose(code);
  }

  lose(code) {
    this.socket = null;
    const retry = this.closed(code);
    if (retry !== null) setTimeout(() => this.open(), retry);
  }

  watch() {
    if (this.socket === null || ++this.silent < SILENT_S) return;
    const socket = this.socket;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(); // which nobody may answer
    this.lose(LOST);
  }

  send(message) {
    if (this.isOpen) this.socket.send(message instanceof Uint8Array ? message : JSON.stringify(message));
  }
}
