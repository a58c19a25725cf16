// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

/// Keeps records once each: a record has an id, and an id that is taken is refused. What is kept of a record is the hash of
/// its content; with `recordBody` and `recordBodies` the content itself goes into the log.
///
/// Only writers may record, so that nobody can take an id before the message that it belongs to. The owner says who they are.
contract Records {
    /// Whoever deployed it, until handed over.
    address public owner;
    /// Who may record.
    mapping(address account => bool) public isWriter;
    /// The hash of the content that was recorded under an id; zero where none was.
    mapping(bytes32 id => bytes32) public contentOf;

    event Recorded(bytes32 indexed id, address indexed writer, bytes32 content);
    event RecordedBody(bytes32 indexed id, address indexed writer, bytes32 content, bytes body);
    event WriterChanged(address indexed account, bool isWriter);
    event OwnerChanged(address indexed from, address indexed to);

    error NotOwner(address sender);
    error NotWriter(address sender);
    /// The id at this place of what was asked for has a record, with this content.
    error AlreadyRecorded(uint256 place, bytes32 id, bytes32 content);
    /// A content hash of zero would look like no record.
    error NoContent(uint256 place, bytes32 id);
    error DifferentLengths(uint256 ids, uint256 contents);

    modifier onlyOwner() {
        if (msg.sender != owner) revert NotOwner(msg.sender);
        _;
    }

    modifier onlyWriter() {
        if (!isWriter[msg.sender]) revert NotWriter(msg.sender);
        _;
    }

    constructor(address[] memory writers) {
        owner = msg.sender;
        emit OwnerChanged(address(0), msg.sender);
        for (uint256 i = 0; i < writers.length; i++) {
            _setWriter(writers[i], true);
        }
    }

    /// One record.
    function record(bytes32 id, bytes32 content) external onlyWriter {
        _keep(0, id, content);
        emit Recorded(id, msg.sender, content);
    }

    /// One record with its content, which is hashed here.
    function recordBody(bytes32 id, bytes calldata body) external onlyWriter {
        bytes32 content = keccak256(body);
        _keep(0, id, content);
        emit RecordedBody(id, msg.sender, content, body);
    }

    /// Many records, all of them or none.
    function recordMany(bytes32[] calldata ids, bytes32[] calldata contents) external onlyWriter {
        if (ids.length != contents.length) revert DifferentLengths(ids.length, contents.length);
        for (uint256 i = 0; i < ids.length; i++) {
            _keep(i, ids[i], contents[i]);
            emit Recorded(ids[i], msg.sender, contents[i]);
        }
    }

    /// Many records with their contents, all of them or none.
    function recordBodies(bytes32[] calldata ids, bytes[] calldata bodies) external onlyWriter {
        if (ids.length != bodies.length) revert DifferentLengths(ids.length, bodies.length);
        for (uint256 i = 0; i < ids.length; i++) {
            bytes32 content = keccak256(bodies[i]);
            _keep(i, ids[i], content);
            emit RecordedBody(ids[i], msg.sender, content, bodies[i]);
        }
    }

    function setWriter(address account, bool allowed) external onlyOwner {
        _setWriter(account, allowed);
    }

    function setOwner(address to) external onlyOwner {
        emit OwnerChanged(owner, to);
        owner = to;
    }

    function _keep(uint256 place, bytes32 id, bytes32 content) private {
        if (content == 0) revert NoContent(place, id);
        bytes32 known = contentOf[id];
        if (known != 0) revert AlreadyRecorded(place, id, known);
        contentOf[id] = content;
    }

    function _setWriter(address account, bool allowed) private {
        isWriter[account] = allowed;
        emit WriterChanged(account, allowed);
    }
}
