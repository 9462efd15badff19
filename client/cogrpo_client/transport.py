"""The I/O of both clients, side by side: tries, streams, waits, pages. The rules are elsewhere."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from typing import TypeVar

import httpx

from cogrpo_client.answers import Answer, failure
from cogrpo_client.calls import Call
from cogrpo_client.connection import Connection
from cogrpo_client.errors import APIError
from cogrpo_client.events import Event, Reader
from cogrpo_client.paging import PageCall, following
from cogrpo_client.waiting import Deadline, Watch, poll_seconds

T = TypeVar("T")
Record = TypeVar("Record")
Result = TypeVar("Result")


class Transport:
    """Sends calls and reads what comes, synchronously. All methods raise `APIError`."""

    def __init__(self, connection: Connection, http: httpx.Client) -> None:
        self.connection = connection
        self.http = http

    def send(self, call: Call[T]) -> T:
        """What a call gives, after as many tries as it may have."""
        request = self.connection.request(self.http.build_request, call)
        attempt = 0
        while True:
            deadline = self.connection.deadline(call)
            try:
                answer = self._read(self.http.send(request, stream=True), deadline)
                if call.takes(answer.status):
                    return call.read(answer)
                error: APIError = failure(answer)
            except httpx.RequestError as broken:
                error = self.connection.broken(broken, request)
            delay = self.connection.delay(call, attempt, error)
            if delay is None:
                raise error
            time.sleep(delay)
            attempt += 1

    def events(self, call: Call[None], reader: Reader[Event]) -> Generator[Event]:
        """The events of a stream; what may be resumed is, after a break. Closing it disconnects."""
        deadline = self.connection.deadline(call)
        attempt = 0
        while True:
            request = self.connection.request(self.http.build_request, call, reader.last_id)
            try:
                with closing(self.http.send(request, stream=True)) as response:
                    if response.is_success:
                        reader.connect(response.headers)
                        for chunk in response.iter_bytes():
                            deadline.check(reader.request_id)
                            for event in reader.feed(chunk):
                                attempt = 0
                                yield event
                            if reader.done:
                                return
                        error: APIError = reader.cut_off()
                    else:
                        error = failure(self._read(response, deadline))
            except httpx.RequestError as broken:
                error = self.connection.broken(broken, request)
            deadline.check(error.request_id)
            delay = (
                self.connection.delay(call, attempt, error) if reader.may_connect(call) else None
            )
            if delay is None:
                raise error
            time.sleep(delay)
            attempt += 1

    def wait(self, watch: Watch[Record, Result], timeout: float | None) -> Result:
        """The result of what is watched, within `timeout` seconds or else the job timeout."""
        deadline = Deadline(self.connection.job_seconds(timeout), watch.what)
        pauses = poll_seconds()
        while True:
            result = watch.result(self.send(watch.within(deadline)))
            if result is not None:
                return result
            deadline.check()
            time.sleep(min(next(pauses), deadline.remaining()))

    def pages(self, call: "PageCall[T]", size: int) -> Generator[T]:
        """The entries of all pages, each page asked for when the one before is used up."""
        cursor = None
        while True:
            page = self.send(call(size, cursor))
            yield from page.data
            cursor = following(page, cursor)
            if cursor is None:
                return

    @staticmethod
    def _read(response: httpx.Response, deadline: Deadline) -> Answer:
        content = bytearray()
        with closing(response):
            for chunk in response.iter_bytes():
                deadline.check(response.headers.get("x-request-id"))
                content += chunk
        return Answer(response.status_code, response.headers, bytes(content))


class AsyncTransport:
    """Sends calls and reads what comes, in asyncio. All methods raise `APIError`."""

    def __init__(self, connection: Connection, http: httpx.AsyncClient) -> None:
        self.connection = connection
        self.http = http

    async def send(self, call: Call[T]) -> T:
        """What a call gives, after as many tries as it may have."""
        request = self.connection.request(self.http.build_request, call)
        attempt = 0
        while True:
            deadline = self.connection.deadline(call)
            try:
                answer = await self._read(await self.http.send(request, stream=True), deadline)
                if call.takes(answer.status):
                    return call.read(answer)
                error: APIError = failure(answer)
            except httpx.RequestError as broken:
                error = self.connection.broken(broken, request)
            delay = self.connection.delay(call, attempt, error)
            if delay is None:
                raise error
            await asyncio.sleep(delay)
            attempt += 1

    async def events(self, call: Call[None], reader: Reader[Event]) -> AsyncGenerator[Event, None]:
        """The events of a stream; what may be resumed is, after a break. Closing it disconnects."""
        deadline = self.connection.deadline(call)
        attempt = 0
        while True:
            request = self.connection.request(self.http.build_request, call, reader.last_id)
            try:
                async with aclosing(await self.http.send(request, stream=True)) as response:
                    if response.is_success:
                        reader.connect(response.headers)
                        async for chunk in response.aiter_bytes():
                            deadline.check(reader.request_id)
                            for event in reader.feed(chunk):
                                attempt = 0
                                yield event
                            if reader.done:
                                return
                        error: APIError = reader.cut_off()
                    else:
                        error = failure(await self._read(response, deadline))
            except httpx.RequestError as broken:
                error = self.connection.broken(broken, request)
            deadline.check(error.request_id)
            delay = (
                self.connection.delay(call, attempt, error) if reader.may_connect(call) else None
            )
            if delay is None:
                raise error
            await asyncio.sleep(delay)
            attempt += 1

    async def wait(self, watch: Watch[Record, Result], timeout: float | None) -> Result:
        """The result of what is watched, within `timeout` seconds or else the job timeout."""
        deadline = Deadline(self.connection.job_seconds(timeout), watch.what)
        pauses = poll_seconds()
        while True:
            result = watch.result(await self.send(watch.within(deadline)))
            if result is not None:
                return result
            deadline.check()
            await asyncio.sleep(min(next(pauses), deadline.remaining()))

    async def pages(self, call: "PageCall[T]", size: int) -> AsyncGenerator[T, None]:
        """The entries of all pages, each page asked for when the one before is used up."""
        cursor = None
        while True:
            page = await self.send(call(size, cursor))
            for entry in page.data:
                yield entry
            cursor = following(page, cursor)
            if cursor is None:
                return

    @staticmethod
    async def _read(response: httpx.Response, deadline: Deadline) -> Answer:
        content = bytearray()
        async with aclosing(response):
            async for chunk in response.aiter_bytes():
                deadline.check(response.headers.get("x-request-id"))
                content += chunk
        return Answer(response.status_code, response.headers, bytes(content))
